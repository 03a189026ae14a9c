"""Straight-through: a hard draw, whose cotangent goes to the probabilities as it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from propc.distributions.perturbed_logits import Family
from propc.propagators.sites.site_propagator import Draw, SiteContext, SitePropagator
from propc.runtime.autograd.surrogate_gradient import stand_in


@dataclass(frozen=True)
class StraightThroughRule(SitePropagator):
    """Draws b ~ p; to autograd the draw is p.

    Attributes:
        family: of the site's distribution.
    """

    name: ClassVar[str] = "st"
    passes_path: ClassVar[bool] = True
    family: Family

    def draw(self, site: SiteContext, phi: Sequence[Tensor], tangents: Sequence[Tensor | None]) -> Draw:
        dist, family = site.build(phi), self.family
        probs = family.probs(dist)
        return Draw(family.value(dist, stand_in(family.draw(probs), probs, self.name, site.error)))
