"""Enumerate: all values of a site in a plate, weighted with their probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from propc.distributions.probabilities import probabilities
from propc.distributions.support import base_of, configurations, joint
from propc.ir.nodes.site import Site
from propc.propagators.sites.site_propagator import Draw, SiteContext, SitePropagator
from propc.types import Plate, PlateKind


@dataclass(frozen=True)
class EnumerateRule(SitePropagator):
    """Gives every configuration, and as weights the probabilities p(z; φ), through which gradients reach φ.

    Attributes:
        values: of each independent element.
        places: how many elements there are in a row.
        common, chunk: as of `Plate`.
        budget: how many configurations there may be, with those of other sites.
    """

    name: ClassVar[str] = "enumerate"
    weighs: ClassVar[bool] = True
    values: int
    places: int
    common: bool = False
    chunk: int | None = None
    budget: int = 0

    def plate(self, site: Site, batched: bool) -> Plate | None:
        count: int = self.values**self.places
        return Plate(site.name, count, PlateKind.CONFIGURATIONS, weighted=True, common=self.common, chunk=self.chunk)

    def draw(self, site: SiteContext, phi: Sequence[Tensor], tangents: Sequence[Tensor | None]) -> Draw:
        dist = base_of(site.build(phi))
        support = dist.enumerate_support(expand=False)
        inner = site.lead - 1  # plates before it, and the batch
        batch, event = dist.batch_shape, dist.event_shape
        table = probabilities(dist, support).reshape(self.values, *batch[:inner], self.places)
        chosen = support.reshape(self.values, *event)[configurations(self.values, self.places, support.device)]
        value = chosen.reshape(len(chosen), *(1,) * inner, *batch[inner:], *event)
        value = value.expand(len(chosen), *batch, *event)
        return Draw(value, (), joint(table))
