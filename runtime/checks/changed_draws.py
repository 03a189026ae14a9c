"""Draws to run a program on again: all of them possible, and those of changed elements really others.

Whether a program that mixes elements shows it must not hang on which values were drawn. So a program runs a few times,
and in each run every element has one of a few values of its own, its level. Where two runs give an element the same
level, what hangs on it alone is the same in both. For each pair of elements there are runs in which the first has the
same level and the second another, for each level of the first.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from math import gcd
from typing import Any

import torch
from torch import Tensor
from torch.distributions import constraints

from propc.distributions.families import family
from propc.distributions.perturbed_logits import Categories
from propc.distributions.support import base_of, event_of, of_ones, values_of
from propc.ir.graph import PropagationGraph
from propc.ir.nodes.site import Site
from propc.ir.records import Ref

MANY = 200  # elements; of so many most pairs are alike, and half of them move a mean by more than rounding does
LEVELS = 4  # where two do not show all: several draws that may cancel, or more than two outcomes
OUTCOMES = 8  # of a site that has more, the first
_TABLE = 10**6  # elements of the table of outcomes; of a larger one two are enough
_BITS = (lambda level: level & 1, lambda level: level >> 1, lambda level: (level ^ level >> 1) & 1)


def runs(size: int, levels: int, light: bool) -> Tensor:
    """The level of each element in each run, [runs, size].

    Args:
        size: how many elements there are.
        levels: how many there may be.
        light: whether the program takes so little time that it may run ten times.
    """
    alike = torch.arange(levels if light else 2).unsqueeze(1).expand(-1, size)
    if size >= MANY or not light:
        half = _scattered(size) % 2
        return torch.stack([alike[0], half, 1 - half, alike[1]])
    if levels == 2:
        return torch.cat([alike[:1], _pairwise(size)])
    chance = torch.Generator().manual_seed(size)
    return torch.cat([alike, torch.randint(levels, (LEVELS + 2, size), generator=chance)])


def _pairwise(size: int) -> Tensor:
    """Truths such that any two elements have all four combinations, [runs, size].

    Each element is true in half of the runs, the first among them, and no two in the same; of more than 35 elements
    some are alike. Kleitman & Spencer (1973), doi:10.1016/0012-365X(73)90098-8.
    """
    count = 6 if size <= 10 else 8
    true = torch.zeros(count, size, dtype=torch.long)
    columns = list(combinations(range(1, count), count // 2 - 1))
    for element in range(size):
        true[[0, *columns[element % len(columns)]], element] = 1
    return true


def _scattered(size: int) -> Tensor:
    """A hash of each index, without a pattern that an operation could share."""
    spread = torch.arange(size) * 2654435761
    return (spread ^ (spread >> 15)) * 2246822519 >> 16


class Variants:
    """The draws of a graph, each element at a level.

    Args:
        draws: those of the first call.
        dims: of the elements, in the draws that have them.
    """

    def __init__(self, graph: PropagationGraph, draws: Mapping[Ref, Tensor], dims: Mapping[Ref, int]) -> None:
        self.draws = draws
        laws = {ref: _law(graph, ref) for ref in dims}
        tables = [law.table for law in laws.values() if law is not None and law.table is not None]
        several = any(draws[ref].shape[dim + 1 :].numel() > 1 for ref, dim in dims.items())
        wide = len(tables) > 1 or any(len(table) > 2 or several for table in tables)
        self.levels = LEVELS if wide else 2
        self.moving = {
            ref: _DrawAtLevels(draws[ref].detach(), dim, laws[ref], place, self.levels)
            for place, (ref, dim) in enumerate(dims.items())
        }

    def at(self, levels: Tensor) -> dict[Ref, Tensor]:
        """All draws; those that do not have the elements as in the first call."""
        return {ref: self.moving[ref].at(levels) if ref in self.moving else value for ref, value in self.draws.items()}


class _DrawAtLevels:
    """A draw, in variants by level."""

    def __init__(self, value: Tensor, dim: int, law: _Law | None, place: int, levels: int) -> None:
        self.dim = dim
        table = None if law is None else law.table
        if table is not None:
            self.variants = _outcomes(value, dim, table.to(value), place, levels)
        else:
            moved = None if law is None else law.moved(value, dim)
            turns = [_turned(value, dim, level) for level in range(1, levels)]
            self.variants = [value, *turns] if moved is None else [value, moved, *turns[1:]]

    def at(self, levels: Tensor) -> Tensor:
        first, *rest = self.variants
        shape = -1, *(1,) * (first.dim() - self.dim - 1)
        for level, variant in enumerate(rest, 1):
            first = torch.where((levels == level).to(first.device).reshape(shape), variant, first)
        return first


def _outcomes(value: Tensor, dim: int, table: Tensor, place: int, levels: int) -> list[Tensor]:
    """Outcomes of a table, another for each level; the same in all elements.

    Within one they are alike on the first three levels, so that a sum moves and a third outcome is seen, and unlike on
    the last.
    """
    count, lead = len(table), value.shape[: value.dim() - (table.dim() - 1)]
    within = [1 if i == dim else size for i, size in enumerate(lead)]
    chance = torch.Generator().manual_seed(place)
    # a step that shares a factor with their number would leave outcomes out
    steps = [step for step in range(1, count) if gcd(step, count) == 1] or [1]
    step, bit = steps[place % len(steps)], _BITS[place % 3 if levels > 2 else 0]
    found = []
    for level in range(levels):
        code = bit(level) if count == 2 else level * step
        spread = torch.randint(count, within, generator=chance) * (level > 2)
        found.append(table[((spread + code) % count).to(value.device).expand(lead)])
    return found


def _turned(value: Tensor, dim: int, by: int) -> Tensor:
    """Draws of other elements; of many elements one draw for all, so that a mean moves."""
    return value.roll(by, dim) if value.shape[dim] < MANY else value.select(dim, by).unsqueeze(dim).expand_as(value)


def _law(graph: PropagationGraph, ref: Ref) -> _Law | None:
    site = graph[ref.node]
    return _Law(graph, site) if isinstance(site, Site) and not ref.port else None


class _Law:
    """The distribution of a site, but for its parameters."""

    def __init__(self, graph: PropagationGraph, site: Site) -> None:
        self.spec, self.phi = site.spec, [graph[ref.node].outputs[ref.port] for ref in site.inputs]
        self.relaxed = site.rule is not None and site.rule.relaxes
        self.table = self._outcomes()

    def _outcomes(self) -> Tensor | None:
        """Some of the values that every element can take, [outcomes, *event]; None where they are not known."""
        if self.relaxed:
            return None
        found, event = family(self.spec), event_of(self.spec)
        try:
            if found is not None:
                return self._of_family(found, event)
            count = values_of(self.spec, self.phi)
            if count is not None:
                support = base_of(of_ones(self.spec, self.phi)).enumerate_support(expand=False)
                return support.reshape(count, *event)[:OUTCOMES]
            counts = isinstance(self.support, _COUNTS) and not event
        except (NotImplementedError, ValueError, RuntimeError, TypeError):  # a law that takes no ones
            return None
        return torch.arange(2) if counts else None

    def _of_family(self, found: Any, event: tuple[int, ...]) -> Tensor:
        dist = of_ones(self.spec, self.phi)
        logits = found.logits(dist)
        known = logits.shape[-1] if isinstance(found, Categories) else 2
        count = min(known, OUTCOMES) if known * logits.numel() <= _TABLE else 2
        table: Tensor = found.outcomes(dist, count)
        return table.reshape(count, -1, *event)[:, 0]

    @property
    def support(self) -> Any:
        """That of each element."""
        found: Any = base_of(of_ones(self.spec, self.phi)).support
        while isinstance(found, constraints.independent):
            found = found.base_constraint
        return found

    def moved(self, value: Tensor, dim: int) -> Tensor | None:
        """One more possible value for all elements of a continuous draw, far from theirs; None where none is known."""
        if not value.dtype.is_floating_point or value.is_complex():
            return None
        try:
            support = self.support
        except (NotImplementedError, ValueError, RuntimeError, AttributeError, TypeError):
            return None
        if isinstance(support, _POSITIVE):
            return (2 * value.abs().amax(dim, keepdim=True) + 0.5).expand_as(value)
        middle = 0.5 if support is constraints.unit_interval else 0.25 if isinstance(support, _REAL) else None
        if middle is None:
            return None
        farthest = value.gather(dim, (value - middle).abs().argmax(dim, keepdim=True))
        return (2 * middle - farthest).expand_as(value)


_REAL = type(constraints.real)
_COUNTS = (type(constraints.nonnegative_integer), constraints.integer_interval)
_POSITIVE = (type(constraints.positive), type(constraints.nonnegative))
