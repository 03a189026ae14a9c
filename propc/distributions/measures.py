"""Weak derivatives: that of a law in one of its parameters, as a multiple of the difference of two laws.

    ∂p(x; θ)/∂θ = c [p⁺(x) − p⁻(x)]

Reference: Pflug (1989), "Sampling derivatives of probabilities".
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.distributions import Distribution, Exponential, Gamma, Normal, Poisson

from propc.errors import PropcTypeError, PropcValueError, message
from propc.util.configure import one_of
from propc.util.name_table import same_definition

Split = Callable[[Any, Tensor], tuple[Tensor, Tensor, Tensor]]
S = TypeVar("S", bound=Split)
REUSED = (None, "positive", "negative")


@dataclass(frozen=True)
class Measure:
    """The derivative of a family in one of its parameters.

    Attributes:
        split: distribution, draw → the constant c, a draw of p⁺ and one of p⁻, all of the draw's shape.
        reuses: which of the two is the draw itself; None where neither is.
    """

    split: Split
    reuses: str | None = None

    @property
    def each(self) -> int:
        """How many values it compares with the draw."""
        return 2 if self.reuses is None else 1

    def others(self, dist: Any, draw: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """The values that are not the draw, and what multiplies the costs of each."""
        found = self.split(dist, draw)
        if not isinstance(found, tuple) or len(found) != 3:
            raise PropcTypeError(
                message(
                    f"the measure-valued derivative of {type(dist).__name__} gives {found!r}",
                    "Let it return the constant, a positive and a negative draw.",
                )
            )
        constant, positive, negative = (torch.as_tensor(each, device=draw.device).expand_as(draw) for each in found)
        pairs = {"positive": (positive, constant), "negative": (negative, -constant)}
        kept = [pair for name, pair in pairs.items() if name != self.reuses]
        return [value for value, _ in kept], [weight for _, weight in kept]


_TABLE: dict[tuple[type, str], Measure] = {}


def register_measure(family: type[Distribution], parameter: str, *, reuses: str | None = None) -> Callable[[S], S]:
    """Decorator of a function that gives the measure-valued derivative of a family in a parameter: `mvd` uses it.

    The function takes the distribution and a draw of it, and returns a constant c, a draw x⁺ and a draw x⁻, all of
    the draw's shape, such that ∂/∂θ E f(x) = E[c (f(x⁺) − f(x⁻))]. All three may depend on the draw: what is near it
    has a cost near the draw's, and varies less.

    Args:
        family: a class of distributions whose elements are numbers.
        parameter: the attribute that holds the parameter, such as ``"loc"``, in the shape of the draws.
        reuses: ``"positive"`` or ``"negative"``, where x⁺ or x⁻ is the draw itself: then the program is run again on
            the other one alone.

    Raises:
        PropcTypeError: no class of distributions; a parameter that is no name; no function.
        PropcValueError: the derivative is known already, or another word for `reuses`.
    """
    if not (isinstance(family, type) and issubclass(family, Distribution)):
        raise PropcTypeError(message(f"a family is a class of distributions; got {family!r}"))
    if not isinstance(parameter, str) or not parameter.isidentifier():
        raise PropcTypeError(
            message(f"the parameter of {family.__name__} must be a name, such as 'loc'; got {parameter!r}")
        )
    one_of("reuses", reuses, REUSED)

    def register(split: S) -> S:
        if not callable(split):
            raise PropcTypeError(message(f"the derivative of {family.__name__} is to be a function; got {split!r}"))
        known = _TABLE.get((family, parameter))
        if known is not None and not same_definition(known.split, split):
            raise PropcValueError(
                message(f"the derivative of {family.__name__} in {parameter!r} is known already", "Derive a family.")
            )
        _TABLE[family, parameter] = Measure(split, reuses)
        return split

    return register


def measures_of(family: type) -> Mapping[str, Measure]:
    """The derivatives of a family, by parameter; empty where there is none."""
    return {parameter: measure for (kind, parameter), measure in _TABLE.items() if kind is family}


def measured_families() -> tuple[str, ...]:
    """The names of the families that have one."""
    return tuple(dict.fromkeys(family.__name__ for family, _ in _TABLE))


@register_measure(Normal, "loc")
def _normal_loc(dist: Normal, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """[δ(μ + σW) − δ(μ − σW)] / (σ√2π), W of the Rayleigh law: W² / 2 is exponential."""
    reach = dist.scale * (2 * _exponential(x)).sqrt()
    return 1 / (dist.scale * math.sqrt(2 * math.pi)), dist.loc + reach, dist.loc - reach


@register_measure(Normal, "scale", reuses="negative")
def _normal_scale(dist: Normal, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """[δ(μ + σM) − p] / σ, M double-sided Maxwell.

    If M is, and U uniform, then MU is standard normal; so given ε = MU, M has its sign and M² = ε² + 2E, with
    E exponential.
    """
    offset = (x - dist.loc) / dist.scale
    far = (offset.square() + 2 * _exponential(x)).sqrt().copysign(offset)
    return 1 / dist.scale, dist.loc + dist.scale * far, x


@register_measure(Gamma, "rate", reuses="positive")
def _gamma_rate(dist: Gamma, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(α/β) [p − Gamma(α + 1, β)]; an exponential more is of the second law."""
    return dist.concentration / dist.rate, x, x + _exponential(x) / dist.rate


@register_measure(Exponential, "rate", reuses="positive")
def _exponential_rate(dist: Exponential, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(1/λ) [p − Gamma(2, λ)]."""
    return 1 / dist.rate, x, x + _exponential(x) / dist.rate


@register_measure(Poisson, "rate", reuses="negative")
def _poisson_rate(dist: Poisson, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """[law of x + 1] − p."""
    return torch.ones_like(x), x + 1, x


def _exponential(like: Tensor) -> Tensor:
    return torch.empty_like(like, memory_format=torch.contiguous_format).exponential_()
