"""Gumbel-Rao: a hard draw, whose cotangent goes to the mean of relaxations that would have given it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from propc.distributions.perturbed_logits import Family
from propc.propagators.sites.site_propagator import Draw, SiteContext, SitePropagator
from propc.propagators.sites.temperature import Temperature
from propc.runtime.autograd.surrogate_gradient import stand_in


@dataclass(frozen=True)
class GumbelRaoRule(SitePropagator):
    """Draws b ~ p; to autograd the draw is the mean of soft(z / temperature) over draws of z given b.

    The noise z − logits counts as fixed in the derivative, as it does where z is drawn first.

    Attributes:
        family: of the site's distribution.
        samples: number of draws of z.
        temperature: of the relaxation.
    """

    name: ClassVar[str] = "gumbel_rao"
    passes_path: ClassVar[bool] = True
    family: Family
    samples: int
    temperature: Temperature

    def state(self, node: Any) -> nn.Module | None:
        return self.temperature.state()

    def draw(self, site: SiteContext, phi: Sequence[Tensor], tangents: Sequence[Tensor | None]) -> Draw:
        dist, family = site.build(phi), self.family
        logits = family.logits(dist)
        temperature = self.temperature.now(site, torch.is_grad_enabled() and logits.requires_grad)
        with torch.no_grad():
            b = family.draw(family.probs(dist))
            z = family.given(b, logits, family.noise(logits.expand(self.samples, *logits.shape)))
        z = stand_in(z, logits.expand_as(z), self.name, site.error)
        return Draw(family.value(dist, stand_in(b, family.soft(z / temperature).mean(0), self.name, site.error)))
