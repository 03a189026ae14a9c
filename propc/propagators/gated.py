"""A propagator with `forward` and `backward` as an autograd function, at a site or at a named node."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.autograd import Function

from propc.distributions.sampling import draw_detached
from propc.errors import EstimatorError, MessageError, message, nearest
from propc.ir.messages import EMPTY, Field, Message, Target
from propc.ir.rules import NodeRule
from propc.propagators.baselines import Baseline
from propc.propagators.propagator import NodeView, Propagator, Sent, note
from propc.propagators.sites.site_propagator import Draw, SiteContext, SitePropagator


@dataclass(frozen=True)
class Gated(SitePropagator):
    """A user's propagator at a site.

    Attributes:
        inner: the propagator.
        inlet: the baseline of the costs sent to it; None where costs are no rows of a batch.
    """

    passes_path: ClassVar[bool] = True
    runs_user_code: ClassVar[bool] = True
    inner: Propagator
    inlet: Baseline | None = None

    @property
    def traceable(self) -> bool:
        return False

    @property
    def name(self) -> str:  # type: ignore[override]
        return self.inner.name

    @property
    def sends(self) -> tuple[Field, ...]:  # type: ignore[override]
        return self.inner.sends

    @property
    def keeps(self) -> tuple[Field, ...]:  # type: ignore[override]
        return self.inner.keeps

    @property
    def targets(self) -> Target:
        return self.inner.targets

    @property
    def forward_targets(self) -> Target:
        return self.inner.forward_targets

    @property
    def local(self) -> bool:
        return self.inner.local

    @property
    def acts_forward(self) -> bool:
        return self.inner.acts_forward

    @property
    def baselines(self) -> tuple[Baseline, ...]:
        return () if self.inlet is None else (self.inlet,)

    def state(self, node: Any) -> nn.Module | None:
        return self.inner.state(node) if isinstance(node, NodeView) else None

    def forward(self, node: NodeView, message: Message) -> Sent:
        sent = self.inner.forward(node, message)
        if node.value is None:
            node.value = draw_detached(node.distribution)
        return sent

    def backward(self, node: NodeView, message: Message) -> Sent:
        return self.inner.backward(node, message)

    def anew(self) -> None:
        return None

    def draw(self, site: SiteContext, phi: Sequence[Tensor], tangents: Sequence[Tensor | None]) -> Draw:
        assert site.view is not None
        value, inlet = _SiteGate.apply(self, site.view(), len(self.baselines), *phi)
        return Draw(value, (inlet,) if self.baselines else ())


class _SiteGate(Function):
    """φ → (x, τ); what arrives at both is the message that the propagator receives."""

    @staticmethod
    def forward(ctx: Any, rule: Gated, view: NodeView, inlets: int, *phi: Tensor) -> tuple[Tensor, Tensor]:
        view.inputs = [_leaf(p, wants) for p, wants in zip(phi, ctx.needs_input_grad[3:])]
        with torch.enable_grad():
            rule.forward(view, EMPTY)
        ctx.rule, ctx.view = rule, view
        ctx.set_materialize_grads(False)
        value = value_of(view)
        if not value.dtype.is_floating_point:
            ctx.mark_non_differentiable(value)
        return value, phi[0].new_zeros(value.shape[:1] if inlets else ())

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, sent: Tensor | None) -> tuple[Any, ...]:
        _first_only(ctx.view)
        arrived = {key: value for key, value in (("grad", grad), ("cost", sent)) if value is not None}
        made = only_message(ctx.view, _backward(ctx, Message(arrived)), ctx.view.fields)
        return (None, None, None, *(made.get(name) for name in ctx.view.fields))


class _NodeGate(Function):
    """A named value; its cotangent passes the propagator."""

    @staticmethod
    def forward(ctx: Any, rule: NodeRule, view: NodeView, value: Tensor) -> Tensor:
        view.value = value.detach()
        with torch.enable_grad():  # as where nodes are visited one by one
            rule.forward(view, EMPTY)
        ctx.rule, ctx.view = rule, view
        made = value_of(view)
        return made.view_as(made)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        _first_only(ctx.view)
        made = only_message(ctx.view, _backward(ctx, Message(grad=grad)), ("grad", "cost"))
        found = made.get("grad")
        if found is not None and (not isinstance(found, Tensor) or found.shape != grad.shape):
            got = list(found.shape) if isinstance(found, Tensor) else type(found).__name__
            finding = f"it sends the cotangent 'grad' as {got}; the value has shape {list(grad.shape)}"
            raise _error(ctx.view, finding, "A cotangent has the shape of its value.")
        return None, None, found


def through(rule: NodeRule, view: NodeView, value: Tensor) -> Tensor:
    """A named value as its propagator hands it on, and its cotangent likewise."""
    made: Tensor = _NodeGate.apply(rule, view, value)
    return made


def only_message(view: NodeView, sent: Sent, known: Sequence[str]) -> Message:
    """The one message that a propagator with no other targets returns.

    Raises:
        MessageError: several, or a field that is not known.
    """
    if sent is None:
        return EMPTY
    if not isinstance(sent, Message):
        several = list(sent) if isinstance(sent, Iterable) else [sent]
        if len(several) != 1 or not isinstance(several[0], Message):
            raise _error(view, f"it returned {type(sent).__name__}", "Return one propc.Message, or declare `targets`.")
        sent = several[0]
    for name in sent:
        if name not in known and name in ("grad", "cost"):
            raise no_cotangent(view, name)
        if name not in known:
            raise _error(view, f"it sends the unknown field {name!r}", f"Declare it in `sends`. {nearest(name, known)}")
    return sent


def value_of(view: NodeView) -> Tensor:
    """The value that a propagator has left at its node, detached.

    Raises:
        MessageError: it is of another type than before.
    """
    value, (kind, *_) = view.value, view.record.outputs
    if not isinstance(value, Tensor) or (tuple(value.shape), value.dtype) != (kind.shape, kind.dtype):
        got = f"{value.dtype}{list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise _error(view, f"its propagator makes the value {got}; it was {kind}", "Keep shape and dtype.")
    return value.detach()


def no_cotangent(view: NodeView, name: str) -> MessageError:
    """The error of a site's propagator that hands on what stops at a site."""
    fields = ", ".join(view.fields)
    return _error(
        view,
        f"its propagator returns the field {name!r}, which is no cotangent on φ",
        f"Return cotangents on {fields}, or make a Sequence of it and a propagator of sites, such as 'rp'.",
    )


def _backward(ctx: Any, arrived: Message) -> Sent:
    try:
        sent: Sent = ctx.rule.backward(ctx.view, arrived)
    except Exception as error:
        note(error, ctx.view)
        raise
    return sent


def _error(view: NodeView, finding: str, fix: str) -> MessageError:
    return MessageError(message(finding, fix, at=f"{view.kind.value} {view.name!r}", where=view.where))


def _first_only(view: NodeView) -> None:
    if torch.is_grad_enabled():
        raise EstimatorError(
            message(
                "its propagator is written as `forward` and `backward`, which gives first derivatives only",
                "Leave out create_graph=True, or write it as a SitePropagator.",
                at=f"{view.kind.value} {view.name!r}",
                where=view.where,
            )
        )


def _leaf(value: Tensor, wants: bool) -> Tensor:
    return value.detach().requires_grad_() if wants else value.detach()
