"""Running the step of a scan as often as needed."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from propc.ir.graph import PropagationGraph
from propc.ir.nodes.scan import Scan
from propc.runtime.observe.watched_plan import heard
from propc.runtime.plan.blocks import recomputing
from propc.runtime.plan.runner import Line
from propc.runtime.plan.step import Plan, Step


@dataclass(frozen=True, slots=True)
class Loop:
    """A stretch of a plan that runs several times: what is between the first and the last step of a scan's own.

    Attributes:
        scan: whose step it is; its first gives what is carried its first values.
        into: the places of what is carried, in each step.
        again: the places of what is carried on.
    """

    scan: Scan
    into: tuple[int, ...]
    again: tuple[int, ...]


def rolled(graph: PropagationGraph, plan: Plan, loops: Iterable[Loop], wanted: Collection[int]) -> Plan:
    """The plan with one step for each loop.

    Args:
        wanted: the places of what is read after the plan; in a loop that is what stands there in its last step.
    """
    found: list[Step] = []
    start = 0
    for loop in loops:
        own = [i for i, step in enumerate(plan) if step.node is loop.scan]
        first, last = own[0] + 1, own[-1]
        later = {i for step in plan[last + 1 :] for i in step.reads} | {*wanted}
        found += [*plan[start:first], _as_one(graph, plan[first:last], loop, later)]
        start = last + 1
    return [*found, *plan[start:]]


def _as_one(graph: PropagationGraph, plan: Plan, loop: Loop, later: Collection[int]) -> Step:
    """A step that runs all those of a loop."""
    made = dict.fromkeys(i for step in plan for i in step.writes)
    ends = tuple(i for i in dict.fromkeys((*made, *loop.into)) if i in later)
    read = tuple(dict.fromkeys((*loop.into, *(i for step in plan for i in step.reads if i not in made))))
    turns = _Turns(Line(graph, plan, read, (*loop.again, *ends)), len(loop.again))
    again = recomputing(graph, [graph[name] for name in loop.scan.body])
    counts = list(_parts(loop.scan.length, loop.scan.blocks))

    def run(*given: Any) -> Sequence[Any]:
        for count in counts[:-1]:
            given = *again(partial(turns.carried, count), given), *given[turns.width :]
        return turns.run(counts[-1], *given)[turns.width :]

    own = Step(loop.scan, run, read, ends)
    return Step(loop.scan, run, read, ends, (*heard([own]).items(), *heard(plan).items()))


def _parts(whole: int, count: int) -> Iterator[int]:
    """A number in so many parts of like size."""
    for i in range(count):
        if part := whole * (i + 1) // count - whole * i // count:
            yield part


@dataclass(frozen=True, slots=True)
class _Turns:
    """Runs a step several times.

    Attributes:
        line: the step: from what is carried, and what else it reads, to what is carried on, and what else is wanted.
        width: how much is carried.
    """

    line: Line
    width: int

    def run(self, count: int, *given: Any) -> tuple[Any, ...]:
        """What the last of so many steps gives."""
        fixed = given[self.width :]
        for _ in range(count - 1):
            given = *self.line(*given)[: self.width], *fixed
        return self.line(*given)

    def carried(self, count: int, *given: Any) -> tuple[Any, ...]:
        """What so many steps carry on."""
        return self.run(count, *given)[: self.width]
