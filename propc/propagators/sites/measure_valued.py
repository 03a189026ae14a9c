"""Measure-valued derivatives: of a family in one of its parameters, by differences of costs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from propc.distributions.measures import measures_of
from propc.propagators.sites.alternatives import Exploring


@dataclass(frozen=True)
class MeasureValuedRule(Exploring):
    """The alternatives of an element are draws of the laws whose differences are the derivative.

    Attributes:
        parameters: those of the distribution in which it is differentiated.
    """

    name: ClassVar[str] = "mvd"
    parameters: tuple[str, ...] = ()

    def others(self, dist: Any, value: Tensor) -> tuple[Tensor, Tensor]:
        measures = measures_of(type(dist))
        with torch.no_grad():
            found = [measures[name].others(dist, value) for name in self.parameters]
        weights = [torch.stack(constants) * getattr(dist, name) for name, (_, constants) in zip(self.parameters, found)]
        return torch.stack([value for values, _ in found for value in values]), torch.cat(weights)
