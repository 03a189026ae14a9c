"""ReinMax: a hard draw, with a straight-through rule that is right to second order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from propc.distributions.perturbed_logits import Family
from propc.propagators.sites.site_propagator import Draw, SiteContext, SitePropagator
from propc.runtime.autograd.surrogate_gradient import stand_in


@dataclass(frozen=True)
class ReinMaxRule(SitePropagator):
    """Draws b ~ p; to autograd the draw has the Jacobian 2·J((p + b)/2) − J(p)/2 in the logits.

    J(p) is that of the softmax where its value is p: diag(p) − ppᵀ, or p(1 − p).

    Attributes:
        family: of the site's distribution.
    """

    name: ClassVar[str] = "reinmax"
    passes_path: ClassVar[bool] = True
    family: Family

    def draw(self, site: SiteContext, phi: Sequence[Tensor], tangents: Sequence[Tensor | None]) -> Draw:
        dist, family = site.build(phi), self.family
        probs, logits = family.probs(dist).detach(), family.logits(dist)
        b = family.draw(probs)
        path = 2 * family.slope((probs + b) / 2, logits) - family.slope(probs, logits) / 2
        return Draw(family.value(dist, stand_in(b, path, self.name, site.error)))
