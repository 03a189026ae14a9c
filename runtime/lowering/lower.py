"""From a graph to its plan, and from a plan to what it is on other draws."""

from __future__ import annotations

from propc.ir.nodes.scan import Scan
from propc.runtime.lowering.lowering import lowering
from propc.runtime.lowering.planner import Planner
from propc.runtime.lowering.scan_lowering import end_scan
from propc.runtime.lowering.token_reads import TokenSum
from propc.runtime.plan.step import Plan, Values


def lowered(planner: Planner) -> Plan:
    """The plan of a graph: the steps of its nodes in the order of the schedule, a join in front of its first reader."""
    graph, steps = planner.graph, planner.steps
    ends = {scan.body[-1]: scan for scan in graph.of(Scan)}
    for name in graph.schedule.forward:
        step = lowering(graph[name]).step(planner, graph[name])
        if step is not None:
            steps.append(planner.copies.around(step))
        if name in ends:
            planner.loops.append(end_scan(planner, ends[name]))
    return tuple(steps)


def replayed(planner: Planner, plan: Plan, first: Values) -> Plan:
    """The plan of a graph on other draws, which are given: without copies and messages.

    Args:
        first: all values of the first call.
    """
    own = (step for step in plan if not (step.node.copy_of or isinstance(step.function, TokenSum)))
    found = (lowering(step.node).replayed(planner, step, first) for step in own)
    return [step for step in found if step is not None]
