"""Tensors and flags that a program keeps in its objects: at every call they are put there anew."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from types import CellType
from typing import Any

import torch.utils._pytree as pytree
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.distributions import Distribution, Transform

from propc.distributions import strip
from propc.tracing.held import Place, changes


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
            self.place.container is group for group in (owner._parameters, owner._modules)
        )
        return isinstance(self.place.container, (dict, CellType)) and not fixed and not _modules(self.value)

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
    return isinstance(value, (bool, str, type(None))) or is_traced(value)


def is_traced(value: Any) -> bool:
    """Whether there is a traced tensor in it."""
    if isinstance(value, FakeTensor):
        return True
    if any(isinstance(leaf, FakeTensor) for leaf in pytree.tree_leaves(value)):
        return True
    tensors = [*strip(value)[0], *(t for m in _modules(value) for t in (*m.parameters(), *m.buffers()))]
    return any(isinstance(tensor, FakeTensor) for tensor in tensors)


def place_name(place: Place, key: Any) -> str:
    """What a user calls it."""
    if key is None:
        return place.path
    if place.owner is None and place.path:
        return f"{place.path}[{key!r}]"
    return f"{place.path}.{key}".strip(".")


def _modules(value: Any) -> list[nn.Module]:
    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, nn.Module)]
