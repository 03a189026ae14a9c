"""What a node looks like in the picture, as plain data: `propc.printing` makes DOT of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from zlib import crc32

INK, QUIET, LINE, FAINT, PALE, PAPER = "#1a202c", "#718096", "#a0aec0", "#cbd5e0", "#f7fafc", "#ffffff"
PINK, TEAL, BLUE = ("#b83280", "#fdeaf4"), ("#2c7a7b", "#e6fffa"), ("#2b6cb0", "#e6f1fb")  # dark and light
_ESTIMATORS = {
    "rp": ("#2f855a", "#e8f7ee"),
    "lr": ("#c05621", "#fdf0e4"),
    "tp": ("#6b46c1", "#f1ebfd"),
    "gs": BLUE,
    "gs-tp": BLUE,
    "gr": BLUE,
    "shaped": BLUE,
    "plain": (QUIET, "#edf2f7"),
    "": (QUIET, PAPER),
}
_OTHERS = (
    ("#2b6cb0", "#e6f1fb"),
    ("#b7791f", "#fdf6dc"),
    ("#086f83", "#e0f7fb"),
    ("#97266d", "#fbe6f3"),
    ("#4c51bf", "#eaebfd"),
    ("#9b2c2c", "#fde8e8"),
    ("#5a6b1e", "#f2f7dc"),
)


@dataclass(frozen=True, slots=True)
class Words:
    """A piece of a label."""

    text: str
    colour: str = INK
    size: int = 11
    bold: bool = False


@dataclass(frozen=True, slots=True)
class Look:
    """What a box shows.

    Attributes:
        lines: of the label, each of pieces side by side.
        attributes: of DOT, such as ``{"shape": "hexagon"}``; what is not named is as of a plain box.
    """

    lines: tuple[tuple[Words, ...], ...]
    attributes: Mapping[str, str]


def small(text: str) -> Words:
    """What is said beside a name."""
    return Words(text, QUIET, 9)


def colours_of(name: str) -> tuple[str, str]:
    """Dark and light of an estimator or a kind of route; of others by a hash that is the same everywhere."""
    return _ESTIMATORS.get(name) or _OTHERS[crc32(name.encode()) % len(_OTHERS)]
