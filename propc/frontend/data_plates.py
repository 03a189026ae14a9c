"""The plates that a program declares: which are open, and where they stand in the shapes of sites and costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from propc.errors import PropcValueError, message
from propc.frontend.user_source import user_source
from propc.types import BATCH, Plate, PlateKind, Source


@dataclass(frozen=True)
class Seen:
    """The size of a plate, whether it is the batch, and who had it first."""

    size: int
    first: bool
    what: str
    where: Source

    def __str__(self) -> str:
        return f"{self.size} elements{' in the batch' if self.first else ''} at {self.what} ({self.where})"


class Declared:
    """What is known of a program's plates while it is traced."""

    def __init__(self) -> None:
        self.open: list[tuple[str, int]] = []
        self.seen: dict[str, Seen] = {}
        self.before: set[tuple[str, str]] = set()  # which plate was seen in front of which

    def plates(self) -> tuple[Plate, ...]:
        """Those that sites or costs stand in, behind the batch."""
        return tuple(Plate(name, seen.size, PlateKind.DATA) for name, seen in self.seen.items() if not seen.first)

    def enter(self, name: str, dim: int) -> None:
        """Open a plate."""
        if any(name == other for other, _ in self.open):
            raise PropcValueError(message(f"plate {name!r} is open already", where=user_source()))
        self.open.append((name, dim))

    def leave(self) -> None:
        """Close the plate that was opened last."""
        self.open.pop()

    def dims(self, what: str, shape: Sequence[int]) -> tuple[str, ...]:
        """Names of the leading dimensions of a value inside the open plates: the batch, and plates behind it.

        A plate that is the first dimension is the batch.

        Args:
            what: a site or cost, for errors.
            shape: the batch shape of the site, or the shape of the cost.

        Raises:
            PropcValueError: a plate has no place in the shape, or another one or another size than elsewhere.
        """
        places = {self._place(what, shape, name, dim): name for name, dim in self.open}
        if not places:
            return ()
        self._check_places(what, shape, places)
        for place, name in places.items():
            self._check_same(name, Seen(shape[place], place == 0, what, user_source()))
        names = tuple(places[place] for place in sorted(places) if place)
        for i, name in enumerate(names):
            self._check_order(what, names[:i], name)
        return BATCH, *names

    def _place(self, what: str, shape: Sequence[int], name: str, dim: int) -> int:
        place = dim if dim >= 0 else dim + len(shape)
        if not 0 <= place < len(shape):
            raise _error(
                what,
                f"plate {name!r} is dimension {dim}, and its shape is {list(shape)}",
                "Give it a draw or a cost for each element, or move it out of the plate.",
            )
        return place

    def _check_places(self, what: str, shape: Sequence[int], places: dict[int, str]) -> None:
        last = max(places)
        if len(places) < len(self.open):
            names = " and ".join(repr(name) for name, _ in self.open)
            raise _error(what, f"the plates {names} are the same dimension of {list(shape)}", "Give each its own.")
        gap = next((place for place in range(1, last) if place not in places), None)
        if gap is not None:
            raise _error(
                what,
                f"plate {places[last]!r} is dimension {last} of {list(shape)}, and dimension {gap} is in no plate",
                "Move it: plates stand right behind the batch, first the outer one.",
            )

    def _check_same(self, name: str, now: Seen) -> None:
        known = self.seen.setdefault(name, now)
        if (known.size, known.first) != (now.size, now.first):
            raise _error(
                now.what,
                f"plate {name!r} has two {'places' if known.size == now.size else 'sizes'}: {known}, and {now}",
                "Expand what has a single element; give different plates different names.",
            )

    def _check_order(self, what: str, outer: Sequence[str], name: str) -> None:
        wrong = next((other for other in outer if (name, other) in self.before), None)
        if wrong is not None:
            raise _error(
                what,
                f"plate {name!r} stands behind {wrong!r}, and in front of it elsewhere",
                "Let plates have the same order everywhere.",
            )
        self.before.update((other, name) for other in outer)


def _error(what: str, finding: str, fix: str) -> PropcValueError:
    return PropcValueError(message(finding, fix, at=what, where=user_source()))
