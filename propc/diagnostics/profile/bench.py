"""Steps of a compiled program, timed as they are and with a clock at every node."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import torch
from torch.profiler import ProfilerActivity, record_function

from propc.diagnostics.comparison.steps import Situation, mean_cost
from propc.diagnostics.profile.memory import CALL, MemoryUse, memory
from propc.diagnostics.profile.timers import Clock, Interval, Timer, cost_of_a_reading, hooks, intervals
from propc.ir.adjacency import BACKWARD
from propc.runtime.observe.watcher import watched_by

# Steps before any is counted: first checks, and what torch prepares when it first runs an operation. Measured on eager,
# over the median of later steps: the second takes about twice, the third 1.1 times, the fourth once as long.
WARMUP = 3
Place = tuple[str, str]  # the name of a node's step, and a direction


@dataclass(frozen=True)
class TimedStep:
    """Seconds of one step: of the call, and of all that follows; of every node, and its hooks in the reverse pass."""

    forward: float
    reverse: float
    intervals: tuple[Interval, ...] = ()
    hooks: Mapping[str, int] = field(default_factory=dict)

    @property
    def whole(self) -> float:
        """From the beginning to the end."""
        return self.forward + self.reverse


@dataclass(frozen=True)
class Times:
    """Seconds of a step, the median over the faster half of some.

    Attributes:
        forward, reverse: of a step without clocks.
        nodes: of each node in each direction.
        intervals: of the fastest step with clocks.
    """

    forward: float
    reverse: float
    nodes: Mapping[Place, float]
    intervals: tuple[Interval, ...]


class Bench:
    """A compiled program and how its steps are taken.

    Args:
        program: what is called.
        backward: whether a reverse pass belongs to a step.
    """

    def __init__(self, program: Callable[..., Any], situation: Situation, timer: Timer, backward: bool) -> None:
        self.program, self.situation, self.timer, self.backward = program, situation, timer, backward

    def times(self, repeats: int) -> Times:
        """Steps without and with clocks, in turns."""
        for _ in range(WARMUP):
            self._step(None)
        steps = [(self._step(None), self._step(Clock(self.timer))) for _ in range(repeats)]
        plain, clocked = (_faster_half(kind) for kind in zip(*steps))
        forward, reverse = median(step.forward for step in plain), median(step.reverse for step in plain)
        reading = cost_of_a_reading(self.timer) if self.backward else 0.0
        return Times(forward, reverse, _by_node(clocked, reading), clocked[0].intervals)

    def memory(self) -> MemoryUse:
        """One more step, under the PyTorch profiler."""
        activities = [ProfilerActivity.CPU]
        if any(device.type == "cuda" for device in self.situation.devices):
            activities.append(ProfilerActivity.CUDA)
        gc.collect()  # what earlier steps have left, so that this one does not give it back
        # Up to torch 2.11 it warns that events of earlier cycles are forgotten, unless acc_events says not to.
        with torch.profiler.profile(activities=activities, profile_memory=True, acc_events=True) as profiler:
            with record_function(CALL):
                returned = self._call()
            self._reverse(returned)
            del returned
        self.situation.written.put_back()
        assert profiler.profiler is not None
        return memory(profiler.profiler.kineto_results.experimental_event_tree())

    def _step(self, clock: Clock | None) -> TimedStep:
        with watched_by(clock):
            begin = self.timer.now()
            returned = self._call()
            called = self.timer.now()
            self._reverse(returned)
            end = self.timer.now()
        self.situation.written.put_back()
        stamps = [] if clock is None else clock.stamps
        _, forward, whole, *times = self.timer.seconds([begin, called, end, *(at for *_, at in stamps)])
        read = [(name, way, begins, at) for (name, way, begins, _), at in zip(stamps, times)]
        return TimedStep(forward, whole - forward if self.backward else 0.0, tuple(intervals(read)), hooks(read))

    def _call(self) -> Any:
        return self.program(*self.situation.args, **self.situation.kwargs)

    def _reverse(self, returned: Any) -> None:
        if self.backward:
            loss, targets = mean_cost(returned), list(self.situation.targets.values())
            if loss.requires_grad:
                torch.autograd.grad(loss, targets, allow_unused=True, retain_graph=self.situation.keeps)


def _faster_half(steps: Iterable[TimedStep]) -> list[TimedStep]:
    """Without those that something else on the machine has held up."""
    ordered = sorted(steps, key=lambda step: step.whole)
    return ordered[: (len(ordered) + 1) // 2]


def _by_node(steps: Sequence[TimedStep], reading: float) -> dict[Place, float]:
    """Seconds of each node in each direction, without what readings of the clock have cost in the reverse pass."""
    each = [_by_place(step.intervals) for step in steps]
    found = {place: median(seconds.get(place, 0.0) for seconds in each) for place in each[0]}
    for name, count in steps[0].hooks.items():
        found[name, BACKWARD] = max(0.0, found[name, BACKWARD] - reading * count)
    return found


def _by_place(intervals: Iterable[Interval]) -> dict[Place, float]:
    found: dict[Place, float] = {}
    for each in intervals:
        place = each.name, each.direction
        found[place] = found.get(place, 0.0) + each.seconds
    return found
