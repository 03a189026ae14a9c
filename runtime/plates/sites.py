"""Sites in plates: they draw with the plates as further batch dimensions of their distribution."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from propc.ir.graph import PropagationGraph
from propc.ir.named_dims import aligned
from propc.ir.nodes.site import Site
from propc.propagators.sites.site_propagator import Draw, SiteContext
from propc.util.torch_rng import set_state, state_of

Rule = Callable[[SiteContext, Sequence[Tensor]], Draw]


class Placing:
    """How a site draws in its plates.

    Where its own plate is a new one, its distribution draws into it; all other plates are batch dimensions of
    the distribution. To a propagator that knows nothing of plates they are further rows of the batch.

    Attributes:
        inner: the plates that are dimensions of the distribution, the outermost first.
        sample_shape: of the draws of the distribution.
        at: where the new plate stands among all; a draw has it in front.
    """

    def __init__(self, graph: PropagationGraph, site: Site) -> None:
        assert site.rule is not None
        self.graph, self.site = graph, site
        read = {name for ref in site.inputs for name in graph.plates_of(ref)}
        fresh = (site.plate,) if site.plate and site.plate not in read else ()
        self.inner = tuple(name for name in site.plates if name not in fresh)
        self.sizes = graph.sizes(self.inner)
        self.sample_shape = graph.sizes(fresh)
        self.at = site.plates.index(site.plate) if fresh else 0
        self.batch = (graph.batch,) if graph.batch is not None and graph.batched(site) else ()
        self.in_rows = site.rule.in_rows and bool(self.inner)
        self.shared = [i for i, p in enumerate(self.inner) if graph.plate(p).common and p != site.plate]
        self.fit = [self._fit(i) for i in range(len(site.inputs))]
        self.plain = not (self.at or self.in_rows or self.shared or any(self.fit))  # a draw needs nothing more

    def context(self, plain: SiteContext) -> SiteContext:
        """The site's context, of a distribution in plates."""
        spec, rows = self.site.spec, math.prod((*self.sizes, *self.batch))
        if self.in_rows:
            spec = spec.with_rows(rows) if self.batch else spec
            build = spec.builder() if self.batch else spec.builder((rows,))
            return replace(plain, spec=spec, build=build, batch=rows, lead=1)
        inner = tuple(size for i, size in enumerate(self.sizes) if i not in self.shared)
        lead = len(self.sample_shape) + len(inner) + len(self.graph.own(self.site))
        return replace(plain, build=spec.builder(inner), sample_shape=self.sample_shape, lead=lead)

    def draw(self, rule: Rule, context: SiteContext, phi: Sequence[Tensor]) -> Draw:
        """Draw by a rule in the plates."""
        phi = [value if fit is None else fit(value) for value, fit in zip(phi, self.fit)]
        if self.in_rows:
            found, lead = rule(context, phi), (*self.sizes, *self.batch)
            return Draw(found.value.unflatten(0, lead), tuple(token.unflatten(0, lead) for token in found.tokens))
        found = self._shared(rule, context, phi, self.shared) if self.shared else rule(context, phi)
        return _moved(found, self.at) if self.at else found

    def _shared(self, rule: Rule, context: SiteContext, phi: Sequence[Tensor], dims: Sequence[int]) -> Draw:
        """Draw element by element of some plates, from the same random numbers in each."""
        if not dims:
            return rule(context, phi)
        *rest, dim = dims
        device, found = phi[0].device, []
        state = state_of(device)
        for element in range(self.sizes[dim]):
            set_state(device, state)
            some = [p.select(dim, element) if self._carries(p, i) else p for i, p in enumerate(phi)]
            found.append(self._shared(rule, replace(context, again=True) if element else context, some, rest))
        at = dim + len(self.sample_shape)  # the plates in `rest` are back already
        weights = [draw.weights for draw in found if draw.weights is not None]
        others = [draw.alternatives for draw in found if draw.alternatives is not None]
        behind = at + bool(others)  # alternatives stand in front of all plates
        return Draw(
            torch.stack([draw.value for draw in found], at),
            tuple(torch.stack(tokens, behind) for tokens in zip(*(draw.tokens for draw in found))),
            torch.stack(weights, at) if weights else None,
            torch.stack(others, behind) if others else None,
        )

    def _carries(self, phi: Tensor, index: int) -> bool:
        ref = self.site.inputs[index]
        return phi.dim() > len(self.graph[ref.node].outputs[ref.port].shape)

    def _fit(self, index: int) -> Callable[[Tensor], Tensor] | None:
        """What brings φ into the plates of the distribution; None where nothing is to be done."""
        ref, spec, inner = self.site.inputs[index], self.site.spec, self.inner
        have, shape = self.graph.plates_of(ref), self.graph[ref.node].outputs[ref.port].shape
        full, normal = spec.batched(index, shape), spec.normal()
        if not inner:
            return None
        if not full:  # the distribution broadcasts it
            missing = max(len(spec.sample_shape), len(spec.batch_shape) + spec.event_dims[index]) - len(shape)
            return None if not have else lambda phi: _spaced(aligned(phi, have, inner), len(shape), missing)
        if self.in_rows:
            whole, last = (*self.sizes, *shape), len(inner) - 1 + len(self.batch)
            return lambda phi: aligned(phi, have, inner).expand(whole).flatten(0, last)
        if have == inner or (normal is not None and index != normal[0] and not have and not self.shared):
            return None
        whole = (*self.sizes, *shape)
        return lambda phi: aligned(phi, have, inner).expand(whole)

    def check(self, value: Tensor) -> None:
        """Check that a distribution draws in plates as it does without.

        Raises:
            EstimatorError: the draw has another shape.
        """
        spec = self.site.spec
        whole = (*self.graph.sizes(self.site.plates), *spec.sample_shape)
        if tuple(value.shape) != whole:
            raise self.site.error(
                f"{spec} draws {list(value.shape)} in the plates {', '.join(map(repr, self.site.plates))}, in "
                f"place of {list(whole)}",
                "Let its sample() give [*sample_shape, *batch_shape, *event_shape], whatever batch shape its "
                "parameters have.",
            )


def _moved(draw: Draw, place: int) -> Draw:
    """A draw whose own plate, its first dimension, takes another place among the plates."""
    value, *tokens = (each.movedim(0, place) for each in (draw.value, *draw.tokens))
    return Draw(value, tuple(tokens), None if draw.weights is None else draw.weights.movedim(0, place))


def _spaced(phi: Tensor, own: int, missing: int) -> Tensor:
    """φ with dimensions of length 1 between its plates and its own, where the distribution broadcasts it."""
    return phi[(slice(None),) * (phi.dim() - own) + (None,) * max(missing, 0)]
