"""Colours of a picture by what was measured at nodes."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from propc.printing.text import ratio

RATIOS = (  # upper ends of signal-to-noise ratios and their colours, from red to blue
    (0.01, "#f9cdb9"),
    (0.1, "#fdeae1"),
    (1.0, "#f2f2f2"),
    (10.0, "#e0eef7"),
    (math.inf, "#b9d9ec"),
)


@dataclass(frozen=True)
class Tint:
    """A colour, and what stands beside it in words."""

    colour: str
    text: str


@dataclass(frozen=True)
class Legend:
    """What colours mean: a title, and each colour with its meaning."""

    title: str
    tints: tuple[Tint, ...]


class Paint(ABC):
    """What nodes are painted by. None leaves them as they are."""

    @abstractmethod
    def legend(self) -> Legend | None:
        """What the colours mean."""

    @abstractmethod
    def node(self, name: str) -> Tint | None:
        """The tint of a node."""

    def row(self, names: Sequence[str]) -> Tint | None:
        """Of equal sites, costs, … in the folded steps of a run."""
        return None

    def run(self, names: Sequence[str]) -> Tint | None:
        """Of all nodes in the folded steps of a run."""
        return None


@dataclass(frozen=True)
class Ratios(Paint):
    """Sites by their signal-to-noise ratios."""

    ratios: Mapping[str, float]

    def legend(self) -> Legend | None:
        ends = [f"below {RATIOS[0][0]:g}", *(f"below {end:g}" for end, _ in RATIOS[1:-1]), f"{RATIOS[-2][0]:g} or more"]
        tints = tuple(Tint(colour, end) for end, (_, colour) in zip(ends, RATIOS))
        return Legend("signal/noise", tints) if self.ratios else None

    def node(self, name: str) -> Tint | None:
        return self.row([name])

    def row(self, names: Sequence[str]) -> Tint | None:
        """The ends of the row, in the colour of the lowest."""
        found = [self.ratios[name] for name in names if name in self.ratios]
        if not found:
            return None
        low, high = min(found), max(found)
        text = f"signal/noise {ratio(low)}" + (f" to {ratio(high)}" if ratio(low) != ratio(high) else "")
        return Tint(next((colour for end, colour in RATIOS if low < end), RATIOS[-1][1]), text)


NOTHING = Ratios({})
