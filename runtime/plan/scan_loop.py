"""Running the step of a scan as often as needed, over a small table of values of its own."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

from propc.ir.graph import PropagationGraph
from propc.ir.nodes.node import Node
from propc.ir.nodes.scan import Scan
from propc.runtime.autograd.recompute import checkpointed
from propc.runtime.checks.out_of_memory import explaining
from propc.runtime.plan.codegen import StepCall
from propc.runtime.plan.liveness import last_reads
from propc.runtime.plan.runner import Line
from propc.runtime.plan.token_reads import Inlet

Plan = Sequence[tuple[Node, StepCall]]


@dataclass(frozen=True, slots=True)
class Loop:
    """A stretch of a plan that runs several times: what is between the first and the last call of a scan's own.

    Attributes:
        scan: whose step it is; its first call gives what is carried its first values.
        end: its last call, which reads what is carried on.
        into: the places of what is carried, in each step.
    """

    scan: Scan
    end: StepCall
    into: tuple[int, ...]


def rolled(graph: PropagationGraph, plan: Plan, loops: Iterable[Loop], returned: Collection[int], keep: bool) -> Plan:
    """The plan with one call for each loop.

    Args:
        returned: the places of what is read after the plan.
        keep: whether all values of a loop's last step are wanted behind it.
    """
    done: list[tuple[Node, StepCall]] = []
    start = 0
    for loop in loops:
        own = [i for i, (node, _) in enumerate(plan) if node is loop.scan]  # a backend may have wrapped the calls
        first, last = own[0] + 1, own[-1]
        later = {i for _, call in plan[last + 1 :] for i in call.reads} | {*returned}
        done += [*plan[start:first], (loop.scan, _repeated(graph, plan[first:last], loop, later, keep))]
        start = last + 1
    return [*done, *plan[start:]]


def _repeated(graph: PropagationGraph, plan: Plan, loop: Loop, later: Collection[int], keep: bool) -> StepCall:
    """A call that runs all steps of a loop."""
    calls = [call for _, call in plan]
    made = dict.fromkeys(i for call in calls for i in call.writes)
    wanted = tuple(i for i in dict.fromkeys((*made, *loop.into)) if keep or i in later)
    outside = (i for call in calls for i in call.reads if i not in made)
    read = tuple(dict.fromkeys((*loop.into, *outside)))
    place = {slot: i for i, slot in enumerate((*read, *made))}

    def places(slots: Iterable[int]) -> tuple[int, ...]:
        return tuple(place[slot] for slot in slots)

    inner = [StepCall(call.function, places(call.reads), places(call.writes)) for call in calls]
    again, ends = places(loop.end.reads), places(wanted)
    done = last_reads(inner, {*range(len(read)), *again, *ends})
    line = Line(graph, [(node, call) for (node, _), call in zip(plan, inner)], done)
    steps = _LoopBody(line, len(place), again)
    nodes = [graph[name] for name in loop.scan.body]
    devices = {kind.device for node in nodes for kind in node.outputs}
    around = partial(explaining, graph, nodes, backward=True)
    counts = list(_parts(loop.scan.length, loop.scan.blocks))

    def call(*given: Any) -> list[Any]:
        carried, fixed = given[: len(again)], given[len(again) :]
        for count in counts[:-1]:
            run: Callable[..., Sequence[Tensor]] = partial(steps.run, count, again)
            carried = checkpointed(run, (*carried, *fixed), devices, around)
        return steps.run(counts[-1], ends, *carried, *fixed)

    return StepCall(call, read, wanted)


def _parts(whole: int, count: int) -> Iterator[int]:
    """A number in so many parts of like size."""
    for i in range(count):
        if part := whole * (i + 1) // count - whole * i // count:
            yield part


@dataclass(frozen=True, slots=True)
class _LoopBody:
    """Runs a step several times.

    Attributes:
        line: the step, over a table of `size` values, in front of which stand those that are carried.
        again: places in the table of what is carried on.
    """

    line: Line
    size: int
    again: tuple[int, ...]

    def run(self, count: int, ends: Sequence[int], *given: Any) -> list[Any]:
        """What is at `ends` behind the last of so many steps."""
        again, width = self.again, len(self.again)
        values = [*given, *[None] * (self.size - len(given))]
        self.line.run(values)
        for _ in range(count - 1):
            values[:width] = [values[i] for i in again]
            self.line.run(values)
        return [values[i] for i in ends]


def fitted_last(inlets: Sequence[Inlet]) -> Callable[..., list[Any]]:
    """A function that gives what it takes; the last of it are tokens, fitted to their readers."""

    def call(*given: Any) -> list[Any]:
        plain = len(given) - len(inlets)
        return [*given[:plain], *(inlet.fit(token) for inlet, token in zip(inlets, given[plain:]))]

    return call


def nothing(*_: Any) -> tuple[()]:
    """Gives nothing."""
    return ()
