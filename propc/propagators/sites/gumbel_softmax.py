"""Gumbel-softmax: the program runs on a relaxed draw, and plain autograd differentiates it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from propc.distributions.perturbed_logits import Family
from propc.propagators.sites.site_propagator import Draw, SiteContext, SitePropagator
from propc.propagators.sites.temperature import Temperature


@dataclass(frozen=True)
class GumbelSoftmaxRule(SitePropagator):
    """Draws soft((logits + noise) / temperature), inside the simplex, and cuts nothing.

    Attributes:
        family: of the site's distribution.
        temperature: of the relaxation.
    """

    name: ClassVar[str] = "gumbel_softmax"
    passes_path: ClassVar[bool] = True
    relaxes: ClassVar[bool] = True
    family: Family
    temperature: Temperature

    def state(self, node: Any) -> nn.Module | None:
        return self.temperature.state()

    def draw(self, site: SiteContext, phi: Sequence[Tensor], tangents: Sequence[Tensor | None]) -> Draw:
        dist, family = site.build(phi), self.family
        logits = family.logits(dist)
        temperature = self.temperature.now(site, torch.is_grad_enabled() and logits.requires_grad)
        return Draw(family.value(dist, family.soft((logits + family.noise(logits)) / temperature)))
