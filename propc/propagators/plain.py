"""A draw through which no gradient goes: nothing before the site wants one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from propc.ir import Plate, Site
from propc.propagators.samples import ONE, Samples
from propc.propagators.site import Draw, SiteContext, SitePropagator, draw_detached


@dataclass(frozen=True)
class Plain(SitePropagator):
    """Only draws. Assigned where no parameter lies behind the site, or no cost after it."""

    name: ClassVar[str] = "plain"
    samples: Samples = ONE

    def plate(self, site: Site, batched: bool) -> Plate | None:
        return self.samples.plate(site.name)

    def draw(self, site: SiteContext, phi: Sequence[Tensor], tangents: Sequence[Tensor | None]) -> Draw:
        return Draw(draw_detached(site.build(phi), site.sample_shape))
