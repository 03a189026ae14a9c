"""Exact values and gradients: the same text with other marks, whose draws are all values, or the nodes of a grid.

A continuous draw takes equidistant nodes (of the logarithm where it is positive, of the logit in an interval), with the
density as weight; a discrete one takes all its values. Nothing of propc is used, and weights come from `probs`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, distributions
from torch.distributions import constraints

from .program import Program, total

ROWS_TO_LOOK = 20_000  # plain draws that say where a continuous law lives
FARTHER = 0.35  # of that range, on both sides: to about 7 standard deviations of a Normal
MOST_NODES = 1500, 400  # of one continuous dimension, of each of two
COARSER = 0.77  # a second grid, whose difference is the error
CHUNK = 100_000  # rows at once


@dataclass(frozen=True)
class Exact:
    """Numbers per row (of all rows, where they meet), and how far they may be off."""

    value: float
    gradients: tuple[float, ...]
    value_error: float
    gradient_errors: tuple[float, ...]


def exact(program: Program) -> Exact:
    """The mean cost of a row and its gradient; where rows meet, the sum of all rows."""
    if program.kind == "meet":
        value, gradients = _joint(program)
        return Exact(value, gradients, 0.0, tuple(0.0 for _ in gradients))
    axes = _look(program)
    continuous = sum(axis.continuous for axis in axes)
    value, gradients = _on_grid(program, axes, 1.0)
    if not continuous:
        return Exact(value, gradients, 0.0, tuple(0.0 for _ in gradients))
    again, others = _on_grid(program, axes, COARSER)
    floor = 5e-4 if continuous == 1 else 2e-3
    errors = [2 * abs(one - other) + floor * (1 + abs(one)) for one, other in zip(gradients, others)]
    return Exact(value, gradients, 2 * abs(value - again) + floor * (1 + abs(value)), tuple(errors))


@dataclass(frozen=True)
class _Axis:
    """One element of a site: where it lives, by the map to its values; all values, if these are discrete."""

    low: float
    high: float
    map: str  # "real", "positive", "unit", "sign" (−1 to 1) or "discrete"
    values: Tensor | None = None

    @property
    def continuous(self) -> bool:
        return self.map != "discrete"

    def nodes(self, wanted: float) -> tuple[Tensor, Tensor]:
        """Values, and the factor of the density in their weights."""
        if self.values is not None:
            return self.values, torch.ones(len(self.values), dtype=torch.float64)
        number = int(wanted)
        step = (self.high - self.low) / number
        t = self.low + step * (torch.arange(number, dtype=torch.float64) + 0.5)
        x = _FROM[self.map](t)
        slope = {"real": torch.ones_like(t), "positive": x, "unit": x * (1 - x), "sign": 1 - x.square()}[self.map]
        return x, step * slope


_FROM: dict[str, Callable[[Tensor], Tensor]] = {
    "real": lambda t: t,
    "positive": torch.exp,
    "unit": torch.sigmoid,
    "sign": torch.tanh,
}
_TO: dict[str, Callable[[Tensor], Tensor]] = {
    "real": lambda x: x,
    "positive": torch.log,
    "unit": torch.logit,
    "sign": torch.atanh,
}


def _marks(sample: Callable[[Any], Tensor]) -> SimpleNamespace:
    def scan(step: Callable[[Any], Any], state: Any, length: int) -> Any:
        for _ in range(length):
            state = step(state)
        return state

    def opaque(function: Callable[..., Tensor], gradient: None = None) -> Callable[..., Tensor]:
        return lambda *args: function(*args).detach()

    class Plate:
        def __init__(self, name: str, dim: int) -> None: ...
        def __enter__(self) -> None: ...
        def __exit__(self, *error: object) -> None: ...

    return SimpleNamespace(
        sample=lambda dist, name=None: sample(dist),
        cost=lambda value, name=None: value,
        node=lambda value, name=None: value,
        opaque=opaque,
        scan=scan,
        plate=Plate,
    )


def _look(program: Program) -> list[_Axis]:
    """The axes of all sites, from plain draws. Also: that the program runs in plain torch."""
    axes: list[_Axis] = []

    def sample(dist: Any) -> Tensor:
        draw: Tensor = dist.sample()
        axes.extend(_axes_of(dist, draw))
        return draw.clone()

    with torch.random.fork_rng():
        torch.manual_seed(program.seed)
        program.function(_marks(sample))(*program.leaves(ROWS_TO_LOOK, torch.float64))
    return axes


def _axes_of(dist: Any, draw: Tensor) -> list[_Axis]:
    plain = _plain(dist)
    if isinstance(plain, distributions.OneHotCategorical):
        choices = plain.event_shape[0]
        axis = _Axis(0, 0, "discrete", torch.eye(choices, dtype=torch.float64))
        return [axis] * (draw.numel() // len(draw) // choices)
    columns = draw.reshape(len(draw), -1).unbind(1)
    if isinstance(plain, distributions.Categorical):
        return [_Axis(0, 0, "discrete", torch.arange(plain.probs.shape[-1]))] * len(columns)
    if isinstance(plain, distributions.Bernoulli):
        return [_Axis(0, 0, "discrete", torch.arange(2, dtype=torch.float64))] * len(columns)
    if isinstance(plain, (distributions.Binomial, distributions.Poisson, distributions.Geometric)):
        most = _most(plain, draw)
        return [_Axis(0, 0, "discrete", torch.arange(most + 1, dtype=torch.float64))] * len(columns)
    return [_range(column, _map(plain.support)) for column in columns]


def _most(dist: Any, draw: Tensor) -> int:
    if isinstance(dist, distributions.Binomial):
        return int(dist.total_count.max())
    return 2 * int(draw.max()) + 8


def _map(support: Any) -> str:
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    low, high = getattr(support, "lower_bound", None), getattr(support, "upper_bound", None)
    if low is None:
        return "real"
    if high is None:
        return "positive"
    return "unit" if low == 0 else "sign"


def _range(column: Tensor, kind: str) -> _Axis:
    where = _TO[kind](column.double().clamp(-1 + 1e-12, 1 - 1e-12) if kind == "sign" else column.double())
    low, high = where.min().item(), where.max().item()
    more = FARTHER * (high - low)
    return _Axis(low - more, high + more, kind)


def _plain(dist: Any) -> Any:
    while isinstance(dist, distributions.Independent):
        dist = dist.base_dist
    return dist


def _on_grid(program: Program, axes: list[_Axis], finer: float) -> tuple[float, tuple[float, ...]]:
    continuous = sum(axis.continuous for axis in axes)
    wanted = finer * MOST_NODES[max(continuous, 1) - 1]
    nodes = [axis.nodes(wanted) for axis in axes]
    lengths = [len(values) for values, _ in nodes]
    rows = math.prod(lengths)
    mass, value, gradients = 0.0, 0.0, [0.0] * len(program.parameters)
    for start in range(0, rows, CHUNK):
        row = torch.arange(start, min(start + CHUNK, rows))
        columns, factor = _columns(nodes, lengths, row)
        leaves = program.leaves(len(row), torch.float64)
        log: list[Tensor] = []
        cost = total(program.function(_marks(_taking(columns, log)))(*leaves))
        weight = factor
        for each in log:
            weight = weight * each
        assert len(columns) == 0, "the program has other sites on the grid"
        mass += weight.sum().item()
        part = (weight * cost).sum()
        value += part.item()
        for index, each in enumerate(torch.autograd.grad(part, leaves, allow_unused=True)):
            gradients[index] += 0.0 if each is None else each.sum().item()
    assert abs(mass - 1) < 2e-3, f"the grid holds a mass of {mass}"
    return value, tuple(gradients)


def _columns(nodes: list[tuple[Tensor, Tensor]], lengths: list[int], row: Tensor) -> tuple[list[Tensor], Tensor]:
    columns, factor = [], torch.ones(len(row), dtype=torch.float64)
    for (values, weights), length in zip(reversed(nodes), reversed(lengths)):
        at, row = row % length, row // length
        columns.append(values[at])
        factor = factor * weights[at]
    return columns[::-1], factor


def _taking(columns: list[Tensor], weights: list[Tensor]) -> Callable[[Any], Tensor]:
    """A `sample` that takes the next columns, and keeps the density there."""

    def sample(dist: Any) -> Tensor:
        shape = dist.batch_shape + dist.event_shape
        one_hot = isinstance(_plain(dist), distributions.OneHotCategorical)
        number = shape.numel() // shape[0] // (shape[-1] if one_hot else 1)
        mine = [columns.pop(0) for _ in range(number)]
        draw = torch.stack(mine, 1).reshape(shape)
        weight = _weight(dist, draw)
        weights.append(weight.reshape(shape[0], -1).prod(1))
        return draw.clone()

    return sample


def _weight(dist: Any, draw: Tensor) -> Tensor:
    """The density or probability of each element, from `probs`: right at the edges, and with the right gradient."""
    plain = _plain(dist)
    if isinstance(plain, distributions.Bernoulli):
        return torch.where(draw > 0.5, plain.probs, 1 - plain.probs)
    if isinstance(plain, distributions.OneHotCategorical):
        return (plain.probs * draw).sum(-1)
    if isinstance(plain, distributions.Categorical):
        return plain.probs.gather(-1, draw.unsqueeze(-1)).squeeze(-1)
    if isinstance(plain, distributions.Poisson):
        return plain.rate**draw * torch.exp(-plain.rate - torch.lgamma(draw + 1))
    if isinstance(plain, distributions.Binomial):
        n = plain.total_count
        ways = torch.exp(torch.lgamma(n + 1) - torch.lgamma(draw + 1) - torch.lgamma(n - draw + 1))
        return ways * plain.probs**draw * (1 - plain.probs) ** (n - draw)
    if isinstance(plain, distributions.Geometric):
        return plain.probs * (1 - plain.probs) ** draw
    return dist.log_prob(draw).exp()


def _joint(program: Program) -> tuple[float, tuple[float, ...]]:
    """All values of all rows of the one site, together."""
    looked: list[list[_Axis]] = []

    def look(dist: Any) -> Tensor:
        looked.append(_axes_of(dist, dist.sample()))
        return dist.sample()

    program.function(_marks(look))(*program.leaves(None))
    ((axis,),) = looked
    assert axis.values is not None
    leaves = program.leaves(None)
    value = leaves[0].new_zeros(())
    for choice in itertools.product(range(len(axis.values)), repeat=3):
        weights: list[Tensor] = []
        columns = [axis.values[torch.tensor(choice)]]
        cost = program.function(_marks(_taking(columns, weights)))(*leaves)
        value = value + weights[0].prod() * total(cost).sum()
    gradients = torch.autograd.grad(value, leaves, allow_unused=True)
    return value.item(), tuple(0.0 if each is None else each.item() for each in gradients)
