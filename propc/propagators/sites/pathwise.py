"""Pathwise: the cotangent on the sample goes through `rsample` to φ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from propc.ir.nodes.site import Site
from propc.propagators.registry import register_propagator
from propc.propagators.sites.plain import Plain
from propc.propagators.sites.samples import ONE, Samples
from propc.propagators.sites.site_propagator import Draw, SiteContext, SitePropagator
from propc.runtime.autograd.normal import standard_normal
from propc.types import Plate


@register_propagator("rp")
@dataclass(frozen=True)
class PathwiseRule(SitePropagator):
    """Draws with `rsample` and cuts nothing: plain autograd does the rest."""

    name: ClassVar[str] = "rp"
    passes_path: ClassVar[bool] = True
    samples: Samples = ONE

    def plate(self, site: Site, batched: bool) -> Plate | None:
        return self.samples.plate(site.name)

    def anew(self) -> SitePropagator:
        return Plain()

    def draw(self, site: SiteContext, phi: Sequence[Tensor], tangents: Sequence[Tensor | None]) -> Draw:
        if site.normal is None:
            return Draw(site.build(phi).rsample(torch.Size(site.sample_shape)))
        loc, scale = (phi[i] for i in site.normal)
        return Draw(loc + standard_normal(loc, site.sample_shape) * scale)  # bit for bit what rsample gives
