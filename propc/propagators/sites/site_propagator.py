"""Propagators of sites: how a site draws, and how cotangents and cost messages reach φ through autograd."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from propc.errors import EstimatorError, message
from propc.ir.messages import Message
from propc.ir.site_record import SiteRecord
from propc.propagators.baselines import WEIGHT, Baseline
from propc.propagators.propagator import NodeView, Propagator, Sent

if TYPE_CHECKING:
    from propc.ir.nodes.site import Site
    from propc.runtime.weighting.per_sample_norms import Norms
    from propc.runtime.weighting.two_pass import Rehearsal
    from propc.types import Plate


@dataclass(frozen=True)
class SiteContext(SiteRecord):
    """What a propagator gets to know of its site.

    Attributes:
        build: φ → distribution, without running a constructor.
        sample_shape: of the draws; ``(K,)`` where the site introduces a plate of K elements (`SitePropagator.plate`),
            else ``()``. The draw has it in front of the shape that φ have in common, as ``dist.sample(sample_shape)``
            gives it.
        lead: how many leading dimensions of the draw are plates and batch, the plates in front; tokens have exactly
            these, ``draw.shape[:lead]``. 1 outside plates: the batch.
        again: whether the site has drawn in this call already, for another element of a plate.
        kinked: whether second derivatives of its log-probability are not to be trusted.
        state: the module that `Propagator.state` gave.
        weights: mixing weights of other sites in this call, by site.
        rehearsal: of the reverse pass of this call, where there is to be one.
        view: makes the site's node as a `Propagator` sees it.
    """

    build: Callable[[Sequence[Tensor]], Distribution]
    state: nn.Module | None = None
    weights: dict[str, list[Tensor]] = field(default_factory=dict)
    rehearsal: Rehearsal | None = None
    view: Callable[[], NodeView] | None = None
    sample_shape: tuple[int, ...] = ()
    lead: int = 1
    again: bool = False
    kinked: bool = False

    @cached_property
    def normal(self) -> tuple[int, int] | None:
        """Places of loc and scale among φ where the distribution is a Normal."""
        return self.spec.normal()

    @cached_property
    def one_hot(self) -> int | None:
        """Place of the logits among φ where it is a OneHotCategorical that holds them."""
        return self.spec.one_hot()


@dataclass(frozen=True, slots=True)
class Draw:
    """A site's outputs: the sample and its tokens, zeros [*plates, batch], one for each channel.

    `weights` are those of the plate that the site introduces, [size, *plates, batch], where its `Plate` says
    that it has any. `alternatives` are other values of the site, [size, *value.shape], where its rule explores
    some; the token is [size, *plates, batch] then.
    """

    value: Tensor
    tokens: tuple[Tensor, ...] = ()
    weights: Tensor | None = None
    alternatives: Tensor | None = None


@dataclass(frozen=True)
class SitePropagator(Propagator, ABC):
    """How a site draws, and how the cotangent on its sample and the messages at its tokens reach φ.

    The reverse pass is written as the autograd graph of what `draw` returns: the cotangent
    that autograd delivers at a token is the sum, over the costs routed to it, of weight times
    (cost − baseline), or of the weight alone, [batch]. `forward` and `backward` follow from that.

    Attributes:
        passes_path: whether a cotangent on the sample goes on to φ.
        weighs: whether a cotangent on the weights of its plate goes on to φ.
        explores: whether its one token takes what costs would be on alternatives, minus what they are.
        by_element: whether its tokens may have plates of the data behind the batch, as `SiteContext.lead` says.
        in_rows: whether plates are to be shown to it as further rows of the batch.
        relaxes: whether what it draws is no draw of the distribution; then it draws where no gradient
            passes too.
        scores: whether messages at its tokens reach φ through `log_prob`, which knows nothing of a support that moves.
    """

    draws: ClassVar[bool] = True
    runs_user_code: ClassVar[bool] = False
    passes_path: ClassVar[bool] = False
    weighs: ClassVar[bool] = False
    explores: ClassVar[bool] = False
    by_element: ClassVar[bool] = False
    in_rows: ClassVar[bool] = False
    relaxes: ClassVar[bool] = False
    scores: ClassVar[bool] = False

    @property
    def baselines(self) -> tuple[Baseline, ...]:
        """One for each token that takes costs; empty where the site receives none.

        `propc.propagators.WEIGHT` in the place of one makes a token that takes the user's weights of the same costs.
        """
        return ()

    @property
    def inlets(self) -> int:
        """How many tokens it has."""
        return len(self.baselines) + self.explores

    @property
    def traceable(self) -> bool:
        """Whether `draw`, with the autograd graph that it makes, is nothing but operations on tensors.

        Then a backend may run it once, on tensors without values, and compile what it did. One of your own says
        so by ``traceable = True`` in its class.
        """
        return type(self).__module__.startswith("propc.")

    @property
    def blind_at_edges(self) -> bool:
        """Whether it sees of a discrete law only what is drawn, so that nothing tells it what has no probability."""
        return self.scores

    # What a rule says that weighs several cotangents on φ against each other; another one leaves it as it is here.

    @property
    def mixes(self) -> int:
        """How many cotangents on φ it weighs against each other."""
        return 1

    @property
    def weighting_target(self) -> str | None:
        """Name of the parameter, argument or node where it takes variances; None where that is φ, or none is taken."""
        return None

    def with_norms(self, norms: Norms) -> SitePropagator:
        """The same, taking variances at the weighting target as `norms` says."""
        raise NotImplementedError

    @property
    def weights_interval(self) -> int:
        """At every how many-th site weights are taken, which equal rules at the sites between may reuse."""
        return 1

    @property
    def shares_weights(self) -> bool:
        """Whether it takes weights from another site, or gives it some, within a call."""
        return False

    def with_donor(self, site: str) -> SitePropagator:
        """The same, with the weights of another site."""
        raise NotImplementedError

    @property
    def rehearses(self) -> bool:
        """Whether its weights come from a rehearsal of the reverse pass."""
        return False

    @property
    def per_sample(self) -> bool:
        """Whether costs must be given for each sample of the batch."""
        return bool(self.inlets)

    def state(self, node: Any) -> nn.Module | None:
        """Memory kept from call to call, for the site's `DistributionSpec`."""
        return None

    def plate(self, site: Site, batched: bool) -> Plate | None:
        """The plate in which it draws several times, if any, under the site's name.

        Everything behind the site runs on every element of the plate; the value of a cost is the mean over it, by the
        plate's weights where it has any (`Draw.weights`). `draw` is then told so by ``site.sample_shape``, and gives
        all elements, [size, *plates, batch, ...]. Where another site has introduced the same plate before, its
        dimension is one of φ's already, and ``sample_shape`` is ``()``.

        Args:
            site: the site.
            batched: whether its leading dimension is the batch.
        """
        return None

    def alternatives(self, site: Site, batched: bool) -> Plate | None:
        """The plate of the alternatives that it explores, if any, under the site's name."""
        return None

    def anew(self) -> SitePropagator | None:
        """The rule by which the site is drawn again on alternatives of an earlier one, without gradient.

        None if it cannot be.
        """
        return self

    @abstractmethod
    def draw(self, site: SiteContext, phi: Sequence[Tensor], tangents: Sequence[Tensor | None]) -> Draw:
        """Draw a sample and connect it to φ.

        Args:
            site: the site.
            phi: its tensors, in the order of ``site.spec.fields``.
            tangents: for each φ its tangents [P, *φ.shape] towards the weighting target, or None; behind them what
                else its `Expand` node gives.
        """

    def forward(self, node: NodeView, message: Message) -> Sent:
        """Draw; what `backward` needs stays in the node's memory.

        Raises:
            EstimatorError: a token takes the weights of costs, which only autograd carries.
        """
        if WEIGHT in self.baselines:
            raise _without_weights(self, node)
        record: Any = node.record
        known = record.name, record.spec, record.shape, record.where, node.batch
        context = SiteContext(*known, record.spec.builder(), node.state)
        with torch.enable_grad():
            drawn = self.draw(context, node.inputs, [None] * len(node.inputs))
        node.memory.drawn = drawn
        node.value = drawn.value.detach()
        return message

    def backward(self, node: NodeView, message: Message) -> Sent:
        """Cotangents on φ from ``grad`` and ``cost``."""
        drawn: Draw = node.memory.drawn
        ends = [(drawn.value, message.get("grad")), *((token, message.get("cost")) for token in drawn.tokens)]
        live = [(end, sent) for end, sent in ends if sent is not None and end.requires_grad]
        wanted = [(name, phi) for name, phi in zip(node.fields, node.inputs) if phi.requires_grad]
        if not live or not wanted:
            return None
        outputs, cotangents = zip(*live)
        grads = torch.autograd.grad(
            outputs, [phi for _, phi in wanted], cotangents, allow_unused=True, retain_graph=True
        )
        return Message({name: grad for (name, _), grad in zip(wanted, grads) if grad is not None})


def _without_weights(rule: SitePropagator, node: NodeView) -> EstimatorError:
    return EstimatorError(
        message(
            f"the propagator {rule.name!r} takes the weights of costs, which do not travel as messages",
            "Give it to the site by itself, and not as a part of another.",
            at=f"site {node.name!r}",
            where=node.where,
        )
    )
