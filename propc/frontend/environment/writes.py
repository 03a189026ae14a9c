"""Tensors and flags that a program keeps in its objects: at every call they are put there anew."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from types import CellType
from typing import Any

from torch import nn
from torch.distributions import Distribution, Transform

from propc.distributions.spec import strip
from propc.frontend.environment.collect import Place, changes
from propc.frontend.environment.leaks import reaches_traced
from propc.util.torch_private import CHILDREN, PARAMETERS

_LATER: Any = None  # in place of a tensor


@dataclass(frozen=True)
class Kept:
    """A value, and the attribute, variable or entry of a dictionary that the program has put it in.

    Attributes:
        name: for people.
        place: where it is kept.
        key: in a dictionary; None in a closure.
        value: what was put there while tracing.
    """

    name: str
    place: Place
    key: Any
    value: Any

    @property
    def renewable(self) -> bool:
        """Whether a later call can put another value there: a list may grow, and layers are made once."""
        owner = self.place.owner
        fixed = isinstance(owner, nn.Module) and any(
            self.place.container is vars(owner)[group] for group in (PARAMETERS, CHILDREN)
        )
        if not isinstance(self.place.container, (dict, CellType)) or fixed:
            return False
        tensors, _, build = strip(self.value)
        return not reaches_traced(build([_LATER] * len(tensors)))

    def put(self, value: Any) -> None:
        """Put a value there."""
        if isinstance(self.place.container, CellType):
            self.place.container.cell_contents = value
        else:
            self.place.container[self.key] = value


def kept(places: Iterable[Place]) -> list[Kept]:
    """What a trace has left; the lazy properties and caches of distributions do not count."""
    return [
        Kept(place_name(place, key), place, key, value)
        for place in places
        if not isinstance(place.owner, (Distribution, Transform))
        for key, value in changes(place)
        if is_renewed(value)
    ]


def counters(places: Iterable[Place]) -> list[tuple[str, Any]]:
    """Name and value of the numbers that a trace has changed, which no later call will."""
    return [
        (place_name(place, key), value)
        for place in places
        for key, value in changes(place)
        if isinstance(value, (int, float)) and not isinstance(value, bool)
    ]


def is_renewed(value: Any) -> bool:
    """Whether it is put back after a trace, and there again by every call: a traced tensor, or a flag."""
    return isinstance(value, (bool, str, type(None))) or reaches_traced(value)


def place_name(place: Place, key: Any) -> str:
    """What a user calls it."""
    if key is None:
        return place.path
    if place.owner is None and place.path:
        return f"{place.path}[{key!r}]"
    return f"{place.path}.{key}".strip(".")
