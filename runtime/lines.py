"""Plans of a graph's nodes run in order; an error says at which node it came."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import torch

from propc.graph import PropagationGraph
from propc.ir import Node
from propc.runtime.blocks import block, last_reads
from propc.runtime.checkpointing import checkpointed
from propc.runtime.shortage import explained, explaining, is_shortage
from propc.runtime.straight import Call, Straight, Values

Plan = Sequence[tuple[Node | None, Call]]


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

    def run(self, values: Values | dict[int, Any]) -> None:
        """Run all calls over a table of values."""
        try:
            self.straight.run(values)
        except Exception as error:
            index = self.straight.failed(error)
            node = self.plan[index][0] if index is not None else None
            if node is None:
                raise
            if is_shortage(error):
                raise explained(self.graph, node, error) from error
            if hasattr(error, "add_note"):
                error.add_note(f"(propc: while running {node.kind.value} {node.name!r}, {node.where})")
            raise


def with_blocks(graph: PropagationGraph, plan: Sequence[tuple[Node, Call]], returned: Sequence[int]) -> Plan:
    """A plan in which every block of the schedule is one call, which the reverse pass runs again."""
    number = {name: i for i, names in enumerate(graph.schedule.blocks) for name in names}
    calls = [call for _, call in plan]
    found: list[tuple[Node | None, Call]] = []
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


def _ends(calls: Sequence[Call], start: int, stop: int, returned: Sequence[int]) -> tuple[Sequence[int], Sequence[int]]:
    """What a block reads and leaves behind."""
    found = block(calls, start, stop, returned)
    return found.reads, found.writes


def _repeated(
    graph: PropagationGraph, plan: Sequence[tuple[Node, Call]], reads: Sequence[int], writes: Sequence[int]
) -> Call:
    """The calls of a block as one."""
    line = Line(graph, plan, last_reads([call for _, call in plan], writes))
    nodes = list(dict.fromkeys(node.name for node, _ in plan))
    devices = {kind.device for name in nodes for kind in graph[name].outputs}
    around: Callable[[], Any] = partial(explaining, graph, [graph[name] for name in nodes], backward=True)

    def run(*given: torch.Tensor) -> list[torch.Tensor]:
        values: dict[int, Any] = dict(zip(reads, given))
        line.run(values)
        return [values[i] for i in writes]

    return Call(lambda *given: checkpointed(run, given, devices, around), tuple(reads), tuple(writes))
