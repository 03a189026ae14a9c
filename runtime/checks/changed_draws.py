"""Draws to run a program on again: all of them possible, and those of changed elements really others.

Whether a program that mixes elements shows it must not hang on which values were drawn. Two rows that meet, as in
`z * z.roll(1, 0)`, show it from where all have the same value: if the result depends on the other row at all, there
is a value of its own for which it does, and the other row has that value too before it is changed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
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

MANY = 200  # so that one element moves a mean by less than a percent
FEW = 16  # so that all pairs of elements are told apart by eight sets
OUTCOMES = 8  # of a site that has more, the first
_TABLE = 10**6  # elements of the table of outcomes; of a larger one two are enough

Base = str
DRAWN: Base = "drawn"
BASES: tuple[Base, ...] = ("lowest", "highest", "any")


@dataclass(frozen=True)
class Change:
    """A change of a draw: `chosen` elements of dimension `dim` are replaced, beginning from a `base`."""

    base: Base
    chosen: Tensor


def one(size: int) -> Tensor:
    """The first element."""
    return torch.arange(size) == 0


def half(size: int, salt: int = 0) -> Tensor:
    """Half of the elements, without a pattern that an operation could share."""
    spread = (torch.arange(size) + salt * 7919) * 2654435761  # a hash of the index
    return ((spread ^ (spread >> 15)) * 2246822519 >> 16) % 2 == 0


def sets(size: int) -> list[Tensor]:
    """Sets of elements such that, of few, for each ordered pair one has the first and not the second."""
    if size > FEW:
        found = [half(size, salt) for salt in range(2)]
    else:
        found = [(torch.arange(size) >> bit) % 2 == 1 for bit in range(max(1, (size - 1).bit_length()))]
    return [each for some in found for each in (some, ~some) if bool(each.any()) and not bool(each.all())]


def changes(size: int, light: bool) -> Iterator[Change]:
    """What to try, the likeliest to show that elements mix first.

    Args:
        size: how many elements there are.
        light: whether the program takes so little time that it may run some twenty times.
    """
    few = size < MANY
    yield Change(DRAWN, one(size) if few else half(size))
    if not light or not few:
        yield Change("lowest", ~half(size) if not few else sets(size)[0])
        return
    for base in ("lowest", "highest"):
        yield from (Change(base, chosen) for chosen in (one(size), *sets(size)))
    yield from (Change("any", chosen) for chosen in sets(size)[-2:])


class Draw:
    """A draw of the first call, and what else it might have been.

    Args:
        value: of the first call.
        dim: of the elements that are changed.
    """

    def __init__(self, graph: PropagationGraph, ref: Ref, value: Tensor, dim: int) -> None:
        self.value, self.dim = value.detach(), dim
        site = graph[ref.node]
        self.law = _Law(graph, site) if isinstance(site, Site) and not ref.port else None
        self.table = None if self.law is None else self.law.outcomes()
        if self.table is not None:
            self.table = self.table.to(value)

    def at(self, base: Base, seed: int) -> Tensor:
        """The draw to begin with."""
        if base == DRAWN:
            return self.value
        chance = torch.Generator().manual_seed(seed)
        if self.table is not None:
            last = len(self.table) - 1
            index = {"lowest": torch.zeros(self._lead), "highest": torch.full(self._lead, float(last))}.get(base)
            drawn = torch.randint(last + 1, self._lead, generator=chance)
            return self._outcome(drawn if index is None else index.long())
        order = torch.randperm(self.value.shape[self.dim], generator=chance).to(self.value.device)
        value = self.value.index_select(self.dim, order)
        signs = torch.randint(2, value.shape, generator=chance).bool().to(value.device)
        moved = None if self.law is None else self.law.moved(value)
        return value if moved is None else torch.where(signs, moved, value)

    def changed(self, value: Tensor, chosen: Tensor, seed: int) -> Tensor:
        """A draw with other values in the chosen elements.

        Where outcomes cannot be listed, all are replaced by the same, so that a mean over many moves as well.
        """
        chosen = chosen.to(value.device)
        other = self._other(value, seed) if self.table is not None else self._same_for_all(value, chosen)
        if other is None:
            return value
        return torch.where(chosen.reshape(-1, *(1,) * (value.dim() - self.dim - 1)), other, value)

    @property
    def _lead(self) -> tuple[int, ...]:
        assert self.table is not None
        return tuple(self.value.shape[: self.value.dim() - (self.table.dim() - 1)])

    def _outcome(self, index: Tensor) -> Tensor:
        assert self.table is not None
        return self.table[index.to(self.value.device)]

    def _other(self, value: Tensor, seed: int) -> Tensor:
        """Another outcome for every element."""
        assert self.table is not None
        chance = torch.Generator().manual_seed(seed + 1)
        index = torch.randint(len(self.table), self._lead, generator=chance)
        found, events = self._outcome(index), self.table.dim() - 1
        same = (found == value).flatten(len(self._lead)).all(-1) if events else found == value
        return torch.where(same.reshape(*same.shape, *(1,) * events), self._outcome((index + 1) % len(self.table)), found)

    def _same_for_all(self, value: Tensor, chosen: Tensor) -> Tensor | None:
        """That of the first element that stays; where the chosen ones have the same, None or a value beside it."""
        rows = value.movedim(self.dim, 0)
        other = rows[int((~chosen).to(torch.uint8).argmax())]
        if bool((rows[chosen] != other).any()):
            return other.unsqueeze(self.dim)
        return None if self.law is None else self.law.moved(value)


class _Law:
    """The distribution of a site, but for its parameters."""

    def __init__(self, graph: PropagationGraph, site: Site) -> None:
        self.spec, self.phi = site.spec, [graph[ref.node].outputs[ref.port] for ref in site.inputs]
        self.relaxed = site.rule is not None and site.rule.relaxes

    def outcomes(self) -> Tensor | None:
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

    def moved(self, value: Tensor) -> Tensor | None:
        """Another possible value for each element of a continuous draw; None where none is known."""
        if not value.dtype.is_floating_point:
            return None
        try:
            if self.support is constraints.unit_interval:
                return 1 - value
            move = next((move for kind, move in _MOVES if isinstance(self.support, kind)), None)
        except (NotImplementedError, ValueError, RuntimeError, AttributeError, TypeError):
            return None
        return None if move is None else move(value)


_REAL = type(constraints.real)
_COUNTS = (type(constraints.nonnegative_integer), constraints.integer_interval)
_POSITIVE = (type(constraints.positive), type(constraints.nonnegative))
_MOVES: tuple[tuple[Any, Callable[[Tensor], Tensor]], ...] = (
    (_REAL, lambda value: 0.5 - value),
    (_POSITIVE, lambda value: value + value.abs() + 0.5),
)
