"""Likelihood ratio: the message at the token goes through `log_prob` to φ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from propc.distributions.sampling import draw_detached
from propc.distributions.score import drawn, row_score
from propc.ir.nodes.site import Site
from propc.propagators.baselines import Baseline, baseline
from propc.propagators.registry import register_propagator
from propc.propagators.sites.plain import Plain
from propc.propagators.sites.samples import ONE, Samples
from propc.propagators.sites.site_propagator import Draw, SiteContext, SitePropagator
from propc.runtime.autograd import normal, one_hot
from propc.runtime.autograd.first_order import first_order
from propc.runtime.autograd.tokens import token
from propc.types import Plate


@register_propagator("lr")
@dataclass(frozen=True)
class LikelihoodRatioRule(SitePropagator):
    """Draws without gradient; message m at the token gives the cotangent m · ∇_φ log p(x; φ).

    Attributes:
        baseline: a `Baseline`, or what makes one: ``"loo"``, ``"moving_average"``, None, a callable.
        samples: how many draws.
    """

    name: ClassVar[str] = "lr"
    by_element: ClassVar[bool] = True
    scores: ClassVar[bool] = True
    baseline: Any = "loo"
    samples: Samples = ONE

    def __post_init__(self) -> None:
        object.__setattr__(self, "baseline", baseline(self.baseline))

    @property
    def baselines(self) -> tuple[Baseline, ...]:
        return (self.baseline,)

    def plate(self, site: Site, batched: bool) -> Plate | None:
        return self.samples.plate(site.name)

    def anew(self) -> SitePropagator:
        return Plain()

    def draw(self, site: SiteContext, phi: Sequence[Tensor], tangents: Sequence[Tensor | None]) -> Draw:
        if site.normal is not None:
            loc, scale = (phi[i] for i in site.normal)
            value = normal.draw(loc, scale, site.sample_shape)
            return Draw(value, (normal.score(site.lead, value, loc, scale),))
        dist = site.build(phi)
        if site.one_hot is not None:
            value = draw_detached(dist, site.sample_shape)
            return Draw(value, (one_hot.score(site.lead, value, phi[site.one_hot]),))
        trail = drawn(dist, site.sample_shape)
        inlet = token(row_score(dist, trail, site.lead))
        if site.kinked:
            inlet = first_order(inlet, str(site.spec), self.name, site.error)
        return Draw(trail[-1], (inlet,))
