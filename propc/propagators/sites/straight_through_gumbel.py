"""Straight-through Gumbel-softmax: a hard draw, whose cotangent goes to its own relaxation."""

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
class StraightThroughGumbelRule(SitePropagator):
    """Draws b = hard(z), z = logits + noise; to autograd the draw is soft(z / temperature).

    Attributes:
        family: of the site's distribution.
        temperature: of the relaxation.
    """

    name: ClassVar[str] = "st_gumbel"
    passes_path: ClassVar[bool] = True
    family: Family
    temperature: Temperature

    def state(self, node: Any) -> nn.Module | None:
        return self.temperature.state()

    def draw(self, site: SiteContext, phi: Sequence[Tensor], tangents: Sequence[Tensor | None]) -> Draw:
        dist, family = site.build(phi), self.family
        logits = family.logits(dist)
        temperature = self.temperature.now(site, torch.is_grad_enabled() and logits.requires_grad)
        z = logits + family.noise(logits)
        return Draw(family.value(dist, stand_in(family.hard(z), family.soft(z / temperature), self.name, site.error)))
