"""Exploring: rules that need the costs of values that a site did not take."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from propc.distributions.sampling import draw_detached
from propc.distributions.support import base_of
from propc.ir.nodes.site import Site
from propc.propagators.sites.plain import Plain
from propc.propagators.sites.site_propagator import Draw, SiteContext, SitePropagator
from propc.runtime.autograd.tokens import token
from propc.types import Plate, PlateKind


@dataclass(frozen=True)
class Exploring(SitePropagator):
    """Draws without gradient; alternatives are the draw with another value in one of its elements.

    Message m_a, the user's weight times what the cost would be on alternative a minus what it is, gives the
    cotangent Σ_a m_a ∇_φ w_a(φ). A subclass says which values and what weights w.

    Attributes:
        places: how many independent elements a row has.
        each: how many other values of each element are tried.
        common: whether sites behind draw from the same random numbers on alternatives as on the draw.
        chunk: how many alternatives segments hold at once; None is all.
    """

    explores: ClassVar[bool] = True
    places: int
    each: int
    common: bool = False
    chunk: int | None = None

    @abstractmethod
    def others(self, dist: Any, value: Tensor) -> tuple[Tensor, Tensor]:
        """Other values of every element, [each, *value.shape], and their weights, [each, *dist.batch_shape].

        Args:
            dist: the distribution of the elements, inside `Independent`.
            value: the draw.
        """

    def alternatives(self, site: Site, batched: bool) -> Plate | None:
        count = self.places * self.each
        return Plate(site.name, count, PlateKind.ALTERNATIVES, common=self.common, chunk=self.chunk)

    def anew(self) -> SitePropagator:
        return Plain()

    def draw(self, site: SiteContext, phi: Sequence[Tensor], tangents: Sequence[Tensor | None]) -> Draw:
        dist = site.build(phi)
        value, base = draw_detached(dist), base_of(dist)
        others, weights = self.others(base, value)
        lead = tuple(value.shape[: site.lead])
        flat = *lead, self.places, *base.event_shape
        with torch.no_grad():
            changed = one_at_a_time(value.reshape(flat), others.reshape(self.each, *flat), len(lead))
        inlet = weights.reshape(self.each, *lead, self.places).movedim(-1, 0).flatten(0, 1)
        return Draw(value, (token(inlet),), alternatives=changed.reshape(self.places * self.each, *value.shape))


def one_at_a_time(value: Tensor, others: Tensor, lead: int) -> Tensor:
    """A value with one of its elements replaced, for each element and each of its other values.

    Args:
        value: [*lead, places, *event].
        others: [each, *lead, places, *event].
        lead: how many dimensions are in front of the elements.

    Returns:
        [places, each, *lead, places, *event].
    """
    places, each = value.shape[lead], others.shape[0]
    changed = value.expand(places, each, *value.shape).clone(memory_format=torch.contiguous_format)
    changed.diagonal(0, 0, 2 + lead).copy_(others.movedim(1 + lead, -1))
    return changed
