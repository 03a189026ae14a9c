"""Steps of scans that are being traced: how many, and the names of what is marked in them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

# Like steps to trace on both sides of the one that stands for many, at first: a cost that is sent to the last few steps
# needs as many. Where they do not suffice there are twice, then four times as many.
ROOM = 3
ROOMS = (ROOM, 2 * ROOM, 4 * ROOM)  # and where passes tell more of them apart


@dataclass
class Round:
    """A step that is being traced: its scan, the steps that it stands for, and how many unnamed marks it has met."""

    scan: str
    first: int
    last: int
    whole: bool
    unnamed: dict[str, int] = field(default_factory=dict)


def label_in_scan(rounds: Sequence[Round], name: str | None, kind: str) -> str:
    """The name of a mark inside steps: its own, or a number, behind it the steps' indices.

    Of a step that stands for many it is a range, such as ``x3..x97``.
    """
    tail = ""
    if name is None:
        inner = rounds[-1]
        number = inner.unnamed[kind] = inner.unnamed.get(kind, -1) + 1
        name, tail = f"{inner.scan}.{kind}", f".{number}" if number else ""
    low, high = (f"{name}{'.'.join(map(str, at))}{tail}" for at in zip(*((r.first, r.last) for r in rounds)))
    return low if low == high else f"{low}..{high}"
