"""Gaussian shaping and resampling as a propagator: the node draws anew from a Gaussian fitted to its rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from propc.propagators.propagator import Propagator
from propc.propagators.registry import register_propagator

if TYPE_CHECKING:
    from propc.passes import Pass


@register_propagator("gs")
@dataclass(frozen=True)
class GaussianFit(Propagator):
    """The value of a `propc.node` is refitted: a resample node stands behind it in the compiled graph.

    What happens before it is the estimators' choice: with `lr` it is Gaussian shaping, with `rp` Gaussian
    resampling (also registered as ``"gr"``), with `tp` both.

    Attributes:
        sites, costs, shrinkage, jitter: as of the pass `propc.passes.GaussianShaping`, which inserts the node.
    """

    name: ClassVar[str] = "gs"
    sites: str | Sequence[str] | None = None
    costs: str | Sequence[str] | None = None
    shrinkage: float | None = None
    jitter: float = 1e-6

    def passes(self, node: str) -> tuple[Pass, ...]:
        from propc.passes.insert.gaussian_shaping import GaussianShaping as Insert  # passes import propagators

        made = Insert(at=node, sites=self.sites, costs=self.costs, shrinkage=self.shrinkage, jitter=self.jitter)
        return (made,)


register_propagator("gr")(lambda **options: GaussianFit(**options))
