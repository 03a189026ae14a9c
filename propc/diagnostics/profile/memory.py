"""Memory by node, from what the PyTorch profiler hears of the allocator."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from propc.ir.adjacency import BACKWARD, FORWARD
from propc.runtime.observe.watcher import PREFIX, range_name

CALL = "the compiled call"  # the range around it


@dataclass(frozen=True)
class MemoryUse:
    """Bytes of one step, by range; what lies outside of all is in the range of the empty name.

    Attributes:
        allocated: in all.
        kept: of that, what was still there when the forward pass had ended.
        peak: the most that was there at one time.
    """

    allocated: dict[str, int]
    kept: dict[str, int]
    peak: int


@dataclass(frozen=True)
class _MemoryChange:
    """Memory taken, or given back where `size` is negative."""

    at: int
    place: tuple[str, int]
    size: int
    name: str


def memory(tree: Iterable[Any]) -> MemoryUse:
    """The memory of a step.

    Args:
        tree: the profiler's events; a range called `CALL` is the forward pass.
    """
    events = list(tree)
    end = max((event.end_time_ns for event in _every(events) if event.name == CALL), default=0)
    allocated: Counter[str] = Counter()
    kept: Counter[str] = Counter()
    live: dict[tuple[str, int], tuple[str, int]] = {}
    total = peak = 0
    for change in sorted(_changes(events, ""), key=lambda change: change.at):
        forward = change.at <= end
        if change.size > 0:
            live[change.place] = owner, size = change.name or _outside(forward), change.size
            allocated[owner] += size
        elif change.place in live:
            owner, size = live.pop(change.place)
            size = -size
        else:
            continue
        kept[owner] += size if forward else 0
        total += size
        peak = max(peak, total)
    return MemoryUse(dict(allocated), dict(kept), peak)


def _outside(forward: bool) -> str:
    return range_name("", FORWARD if forward else BACKWARD)


def _every(events: Iterable[Any]) -> Iterator[Any]:
    for event in events:
        yield event
        yield from _every(event.children)


def _changes(events: Iterable[Any], name: str) -> Iterator[_MemoryChange]:
    """All allocations, each with the range that it is in."""
    for event in events:
        if event.name.startswith(PREFIX):
            yield from _changes(event.children, event.name)
        elif event.name == "[memory]":
            fields = event.extra_fields
            yield _MemoryChange(event.start_time_ns, (str(fields.device), fields.ptr), fields.alloc_size, name)
        else:
            yield from _changes(event.children, name)
