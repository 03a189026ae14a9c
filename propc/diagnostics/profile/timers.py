"""Clocks for steps: who ran when, on the processor or on a GPU."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch

from propc.ir.adjacency import BACKWARD
from propc.runtime.observe.watcher import Watcher, watch_reverse

Stamp = tuple[str, str, bool, float]  # a node, a direction, whether it begins there, and when


@dataclass(frozen=True)
class Interval:
    """A node's step, or a piece of its reverse pass: seconds from the beginning of the call, and how long it took."""

    name: str
    direction: str
    start: float
    seconds: float


class Timer(ABC):
    """Takes the time, at once or by asking a device to do so when it comes to it."""

    @abstractmethod
    def now(self) -> Any:
        """A stamp."""

    @abstractmethod
    def seconds(self, stamps: Sequence[Any]) -> list[float]:
        """The seconds of stamps since the first of them."""


class HostTimer(Timer):
    """The time of the processor."""

    def now(self) -> float:
        return time.perf_counter()

    def seconds(self, stamps: Sequence[float]) -> list[float]:
        return [stamp - stamps[0] for stamp in stamps]


class CudaTimer(Timer):
    """The time of a GPU: events in its stream, so that what is in between is what it computed, or waited for."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def now(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        return event

    def seconds(self, stamps: Sequence[torch.cuda.Event]) -> list[float]:
        torch.cuda.synchronize(self.device)
        return [stamps[0].elapsed_time(stamp) / 1e3 for stamp in stamps]


def timer_of(devices: Iterable[torch.device]) -> Timer:
    """That of a GPU if one computes, else that of the processor."""
    card = next((device for device in devices if device.type == "cuda"), None)
    return HostTimer() if card is None else CudaTimer(card)


class Clock(Watcher):
    """Stamps the beginning and the end of steps."""

    def __init__(self, timer: Timer) -> None:
        self.now = timer.now
        self.stamps: list[tuple[str, str, bool, Any]] = []

    def enter(self, name: str, direction: str) -> None:
        self.stamps.append((name, direction, True, self.now()))

    def leave(self, name: str, direction: str) -> None:
        self.stamps.append((name, direction, False, self.now()))


def intervals(stamps: Sequence[Stamp]) -> list[Interval]:
    """Who ran from stamp to stamp; neighbouring pieces of one node are one interval.

    What autograd does after a function has run, such as adding its gradient to others, is counted to that function.
    """
    found: list[Interval] = []
    running: list[str] = []
    for (name, direction, begins, start), (*_, end) in pairwise(stamps):
        if begins:
            running.append(name)
        else:
            running.pop()
        owner = running[-1] if running else name if direction == BACKWARD else None
        if owner is not None:
            _add(found, Interval(owner, direction, start, end - start))
    return found


def hooks(stamps: Iterable[Stamp]) -> dict[str, int]:
    """How many functions of each node autograd has run, in whose hooks the clock was read."""
    found: Counter[str] = Counter()
    depth = 0
    for name, direction, begins, _ in stamps:
        if begins and not depth and direction == BACKWARD:
            found[name] += 1
        depth += 1 if begins else -1
    return dict(found)


def _add(found: list[Interval], piece: Interval) -> None:
    last = found[-1] if found else None
    if last is not None and (last.name, last.direction) == (piece.name, piece.direction):
        found[-1] = replace(last, seconds=piece.start + piece.seconds - last.start)
    else:
        found.append(piece)


# Functions in a chain, and chains of which the quickest counts. Measured on a busy machine, where a reading costs 3 μs:
# one try gives 0 to 28, three 0 to 8, seven 1 to 7, in 50 ms.
CHAIN, TRIES = 200, 7


def cost_of_a_reading(timer: Timer) -> float:
    """Seconds by which a clock's two hooks prolong a function of the reverse pass; on a GPU they run beside it."""
    if not isinstance(timer, HostTimer):
        return 0.0
    plain, clocked = (min(_chain(timer, watched) for _ in range(TRIES)) for watched in (False, True))
    return max(0.0, clocked - plain) / CHAIN


def _chain(timer: HostTimer, watched: bool) -> float:
    """Seconds of the reverse pass of a chain of small functions."""
    end = start = torch.ones((), device="cpu", dtype=torch.float32, requires_grad=True)
    for _ in range(CHAIN):
        end = end.neg()
    if watched:
        watch_reverse([end.grad_fn], [], [0], [""], Clock(timer))
    before = timer.now()
    torch.autograd.grad(end, start)
    return timer.now() - before
