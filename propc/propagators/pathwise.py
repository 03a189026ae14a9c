"""Pathwise: the cotangent on the sample goes through `rsample` to φ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from propc.propagators.base import Draw, Propagator, SiteContext


@dataclass(frozen=True)
class Pathwise(Propagator):
    """Draws with `rsample` and cuts nothing: plain autograd does the rest."""

    name: ClassVar[str] = "rp"
    passes_path: ClassVar[bool] = True

    def draw(self, site: SiteContext, phi: Sequence[Tensor], tangents: Sequence[Tensor | None]) -> Draw:
        return Draw(site.build(phi).rsample())
