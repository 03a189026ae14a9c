"""Measure-valued derivatives: of a family in one of its parameters, by differences of costs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.distributions import Distribution, Exponential, Gamma, Normal, Poisson

from propc.propagators.sites.alternatives import Exploring


@dataclass(frozen=True)
class MeasureSplit:
    """The derivative of a law in one parameter, ∂p = Σ_a c_a (law of value a − p).

    Attributes:
        each: how many values a there are.
        at: distribution, draw → the values and the constants c, both [each, *draw.shape]. A value may depend on
            the draw: only its law matters, and what is near the draw has a cost near the draw's.
    """

    each: int
    at: Callable[[Any, Tensor], tuple[Tensor, Tensor]]


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
            found = [measures[name].at(dist, value) for name in self.parameters]
        weights = [constants * getattr(dist, name) for name, (_, constants) in zip(self.parameters, found)]
        return torch.cat([values for values, _ in found]), torch.cat(weights)


def _normal_loc(dist: Normal, x: Tensor) -> tuple[Tensor, Tensor]:
    """[δ(μ + σW) − δ(μ − σW)] / (σ√2π), W of the Rayleigh law: W² / 2 is exponential."""
    reach = dist.scale * (2 * _exponential(x)).sqrt()
    constant = (1 / (dist.scale * math.sqrt(2 * math.pi))).expand_as(x)
    return torch.stack((dist.loc + reach, dist.loc - reach)), torch.stack((constant, -constant))


def _normal_scale(dist: Normal, x: Tensor) -> tuple[Tensor, Tensor]:
    """[δ(μ + σM) − p] / σ, M double-sided Maxwell.

    If M is, and U uniform, then MU is standard normal; so given ε = MU, M has its sign and M² = ε² + 2E, with
    E exponential.
    """
    offset = (x - dist.loc) / dist.scale
    far = (offset.square() + 2 * _exponential(x)).sqrt().copysign(offset)
    return (dist.loc + dist.scale * far)[None], (1 / dist.scale).expand_as(x)[None]


def _gamma_rate(dist: Gamma, x: Tensor) -> tuple[Tensor, Tensor]:
    """(α/β) [p − Gamma(α + 1, β)]; an exponential more is of the second law."""
    return (x + _exponential(x) / dist.rate)[None], (-dist.concentration / dist.rate).expand_as(x)[None]


def _exponential_rate(dist: Exponential, x: Tensor) -> tuple[Tensor, Tensor]:
    """(1/λ) [p − Gamma(2, λ)]."""
    return (x + _exponential(x) / dist.rate)[None], (-1 / dist.rate).expand_as(x)[None]


def _poisson_rate(dist: Poisson, x: Tensor) -> tuple[Tensor, Tensor]:
    """[law of x + 1] − p."""
    return (x + 1)[None], torch.ones_like(x)[None]


def _exponential(like: Tensor) -> Tensor:
    return torch.empty_like(like, memory_format=torch.contiguous_format).exponential_()


_MEASURES: dict[type[Distribution], Mapping[str, MeasureSplit]] = {
    Normal: {"loc": MeasureSplit(2, _normal_loc), "scale": MeasureSplit(1, _normal_scale)},
    Gamma: {"rate": MeasureSplit(1, _gamma_rate)},
    Exponential: {"rate": MeasureSplit(1, _exponential_rate)},
    Poisson: {"rate": MeasureSplit(1, _poisson_rate)},
}
FAMILIES = tuple(kind.__name__ for kind in _MEASURES)


def measures_of(kind: type[Distribution]) -> Mapping[str, MeasureSplit]:
    """The derivatives of a family, by parameter; empty where there is no rule."""
    return _MEASURES.get(kind, {})
