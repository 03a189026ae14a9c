"""Whether anything has changed in what a program reaches: a flat list of places, compared by identity.

Looking through closures, objects and modules at every call would cost more than a small
model's step. The places that one look has read are kept with what was in them; while they
are unchanged, its outcome is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from types import CellType
from typing import Any


class State:
    """The plain values that a program reaches, as a part of the cache key; hashed once."""

    __slots__ = ("_hash", "values")

    def __init__(self, values: tuple[Any, ...]) -> None:
        self.values, self._hash = values, hash(values)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, State) and self.values == other.values)


@dataclass
class Watch:
    """The places that a walk has read, with what was in them: while all are as they were, so is its state.

    Attributes:
        entries: (dictionary or list, key, value) for each item read.
        sizes: (dictionary or list, length).
        cells: (closure cell, content).
        contents: (reader, what it read) for each set and array, which are compared by content.
        state: what the walk found.
    """

    entries: list[tuple[Any, Any, Any]] = field(default_factory=list)
    sizes: list[tuple[Any, int]] = field(default_factory=list)
    cells: list[tuple[CellType, Any]] = field(default_factory=list)
    contents: list[tuple[Callable[[], Any], Any]] = field(default_factory=list)
    state: State = field(default_factory=lambda: State(()))

    def holds(self) -> bool:
        """Whether everything is the same object as before."""
        try:
            for container, key, value in self.entries:
                if container[key] is not value:
                    return False
            for container, size in self.sizes:
                if len(container) != size:
                    return False
            if any(read() != content for read, content in self.contents):
                return False
            return all(cell.cell_contents is value for cell, value in self.cells)
        except (LookupError, ValueError):  # a key is gone, a cell is empty
            return False


class Attributes:
    """The attributes of a class, inherited ones too, or of an object with slots, read like a dictionary."""

    def __init__(self, owner: Any) -> None:
        self.owner = owner

    def __getitem__(self, name: str) -> Any:
        return getattr(self.owner, name, None)


class Membership:
    """What is in a set, read like a dictionary from elements to True."""

    def __init__(self, members: Any) -> None:
        self.members = members

    def __getitem__(self, element: Any) -> bool:
        return element in self.members
