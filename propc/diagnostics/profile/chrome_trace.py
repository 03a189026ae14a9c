"""A profile in the trace format of chrome://tracing and Perfetto."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from propc.diagnostics.profile.timers import Interval
from propc.ir.adjacency import BACKWARD, FORWARD
from propc.util.stopwatch import Seconds

Event = dict[str, Any]
COMPILING, STEP = 1, 2  # as processes, since each has a time of its own
TRACKS = {FORWARD: 1, BACKWARD: 2}


def chrome_trace(
    program: str, compiling: Seconds, intervals: Iterable[Interval], about: Mapping[str, Mapping[str, Any]]
) -> str:
    """The text of a trace: compiling, pass by pass, and one step, node by node in both directions.

    Args:
        about: what is said of each node beside its name.
    """
    events = [
        _named("process_name", COMPILING, 0, f"compiling {program}"),
        _named("process_name", STEP, 0, f"one step of {program}"),
        _named("thread_name", STEP, TRACKS[FORWARD], "forward"),
        _named("thread_name", STEP, TRACKS[BACKWARD], "reverse"),
    ]
    start = 0.0
    for name, seconds in compiling:
        events.append(_lasting(name, "compiling", COMPILING, 1, start, seconds, {}))
        start += seconds
    for each in (each for each in intervals if each.name in about):
        track = TRACKS[each.direction]
        events.append(_lasting(each.name, each.direction, STEP, track, each.start, each.seconds, about[each.name]))
    return json.dumps({"displayTimeUnit": "ms", "traceEvents": events})


def _named(what: str, process: int, thread: int, name: str) -> Event:
    return {"name": what, "ph": "M", "pid": process, "tid": thread, "args": {"name": name}}


def _lasting(
    name: str, kind: str, process: int, thread: int, start: float, seconds: float, about: Mapping[str, Any]
) -> Event:
    """A slice of a track; times are in microseconds."""
    times = {"ts": 1e6 * start, "dur": 1e6 * seconds}
    return {"name": name, "cat": kind, "ph": "X", "pid": process, "tid": thread, **times, "args": dict(about)}
