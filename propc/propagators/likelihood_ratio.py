"""Likelihood ratio: the message at the token goes through `log_prob` to φ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from propc.distributions import row_log_prob
from propc.propagators.site import Baseline, Draw, SiteContext, SitePropagator, draw_detached
from propc.runtime.gates import token
from propc.runtime.normal import NormalScore


@dataclass(frozen=True)
class LikelihoodRatio(SitePropagator):
    """Draws without gradient; message m at the token gives the cotangent m · ∇_φ log p(x; φ)."""

    name: ClassVar[str] = "lr"
    baseline: Baseline

    @property
    def baselines(self) -> tuple[Baseline, ...]:
        return (self.baseline,)

    def draw(self, site: SiteContext, phi: Sequence[Tensor], tangents: Sequence[Tensor | None]) -> Draw:
        dist = site.build(phi)
        value = draw_detached(dist)
        if site.normal is not None:
            i, j = site.normal
            return Draw(value, (NormalScore.apply(value, phi[i], phi[j]),))
        return Draw(value, (token(row_log_prob(dist, value)),))
