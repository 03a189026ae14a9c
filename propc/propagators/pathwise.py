"""Pathwise: the cotangent on the sample goes through `rsample` to φ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from propc.propagators.registry import register_propagator
from propc.propagators.site import Draw, SiteContext, SitePropagator
from propc.runtime.normal import standard_normal


@register_propagator("rp")
@dataclass(frozen=True)
class Pathwise(SitePropagator):
    """Draws with `rsample` and cuts nothing: plain autograd does the rest."""

    name: ClassVar[str] = "rp"
    passes_path: ClassVar[bool] = True

    def draw(self, site: SiteContext, phi: Sequence[Tensor], tangents: Sequence[Tensor | None]) -> Draw:
        if site.normal is None:
            return Draw(site.build(phi).rsample())
        loc, scale = (phi[i] for i in site.normal)
        return Draw(loc + standard_normal(loc) * scale)  # bit for bit what rsample gives
