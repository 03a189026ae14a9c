"""A draw through which no gradient goes: nothing before the site wants one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from propc.propagators.site import Draw, SiteContext, SitePropagator, draw_detached


@dataclass(frozen=True)
class Plain(SitePropagator):
    """Only draws. Assigned where no parameter lies behind the site, or no cost after it."""

    name: ClassVar[str] = "plain"

    def draw(self, site: SiteContext, phi: Sequence[Tensor], tangents: Sequence[Tensor | None]) -> Draw:
        return Draw(draw_detached(site.build(phi)))
