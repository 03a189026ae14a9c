"""Plans of a graph's nodes run in order; an error says at which node it came."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from propc.ir.graph import PropagationGraph
from propc.ir.nodes.node import Node
from propc.runtime.autograd.recompute import checkpointed
from propc.runtime.checks.out_of_memory import explained, explaining, is_shortage
from propc.runtime.observe.watched_plan import NamedStep, Watched, named
from propc.runtime.observe.watcher import BLOCK, in_reverse, label_of, watching
from propc.runtime.plan.codegen import StepCall, Straight, Values
from propc.runtime.plan.liveness import block, last_reads

Plan = Sequence[tuple[Node | None, StepCall]]


class Line:
    """A plan, run in order.

    Args:
        graph: whose it is.
        plan: calls with their nodes; None where a call names the node of its errors itself.
        done: for each call, the places of the values that nobody reads after it.
    """

    def __init__(self, graph: PropagationGraph, plan: Plan, done: Iterable[Sequence[int]]) -> None:
        self.graph, self.plan = graph, plan
        self.straight = Straight([(call, places) for (_, call), places in zip(plan, done)])

    @cached_property
    def steps(self) -> list[NamedStep]:
        """The calls as who watches hears of them."""
        return [_named(node, call, done) for (node, call), (_, done) in zip(self.plan, self.straight.steps)]

    @property
    def nodes(self) -> dict[str, tuple[Node, ...]]:
        """The nodes of each name that a watcher hears."""
        return {name: nodes for step in self.steps for name, nodes in step.nodes.items()}

    def run(self, values: Values | dict[int, Any]) -> None:
        """Run all calls over a table of values."""
        watcher = watching()
        line = self.straight if watcher is None else Watched(self.steps, watcher)
        try:
            line.run(values)
        except Exception as error:
            index = line.failed(error)
            node = self.plan[index][0] if index is not None else None
            if node is None:
                raise
            if is_shortage(error):
                raise explained(self.graph, node, error) from error
            if hasattr(error, "add_note"):
                error.add_note(f"(propc: while running {node.kind.value} {node.name!r}, {node.where})")
            raise


def with_blocks(graph: PropagationGraph, plan: Sequence[tuple[Node, StepCall]], returned: Sequence[int]) -> Plan:
    """A plan in which every block of the schedule is one call, which the reverse pass runs again."""
    number = {name: i for i, names in enumerate(graph.schedule.blocks) for name in names}
    calls = [call for _, call in plan]
    found: list[tuple[Node | None, StepCall]] = []
    start = 0
    while start < len(plan):
        inside = number.get(plan[start][0].name)
        stop = start + 1
        while inside is not None and stop < len(plan) and number.get(plan[stop][0].name) == inside:
            stop += 1
        if inside is None:
            found.append(plan[start])
        else:
            found.append((None, _repeated(graph, plan[start:stop], *_ends(calls, start, stop, returned))))
        start = stop
    return found


def _ends(
    calls: Sequence[StepCall], start: int, stop: int, returned: Sequence[int]
) -> tuple[Sequence[int], Sequence[int]]:
    """What a block reads and leaves behind."""
    found = block(calls, start, stop, returned)
    return found.reads, found.writes


def _repeated(
    graph: PropagationGraph, plan: Sequence[tuple[Node, StepCall]], reads: Sequence[int], writes: Sequence[int]
) -> StepCall:
    """The calls of a block as one."""
    line = Line(graph, plan, last_reads([call for _, call in plan], writes))
    nodes = [graph[name] for name in dict.fromkeys(node.name for node, _ in plan)]
    return StepCall(Repeated(graph, line, tuple(nodes), tuple(reads), tuple(writes)), tuple(reads), tuple(writes))


@dataclass(frozen=True)
class Repeated:
    """The calls of a block as one function, which the reverse pass runs again."""

    graph: PropagationGraph
    line: Line
    nodes: tuple[Node, ...]
    reads: tuple[int, ...]
    writes: tuple[int, ...]

    def __call__(self, *given: torch.Tensor) -> Sequence[torch.Tensor]:
        return checkpointed(self._run, given, self.devices, self._around)

    @cached_property
    def devices(self) -> set[torch.device]:
        """On which it computes."""
        return {kind.device for node in self.nodes for kind in node.outputs}

    def _run(self, *given: torch.Tensor) -> list[torch.Tensor]:
        values: dict[int, Any] = dict(zip(self.reads, given))
        self.line.run(values)
        return [values[i] for i in self.writes]

    @contextmanager
    def _around(self) -> Iterator[None]:
        with explaining(self.graph, self.nodes, backward=True), in_reverse():
            yield


def _named(node: Node | None, call: StepCall, done: Sequence[int]) -> NamedStep:
    """A call with its name, and those of what is inside."""
    if isinstance(call.function, Repeated):
        inside = call.function.line.nodes
        name = label_of(BLOCK, [node for nodes in inside.values() for node in nodes])
        return NamedStep(name, call, done, {**inside, name: ()})
    assert node is not None
    return named(node, call, done)
