"""Blocks of a plan that run again in the reverse pass, in place of what they compute being kept."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import groupby

from torch import Tensor

from propc.ir.graph import PropagationGraph
from propc.ir.nodes.node import Node
from propc.runtime.autograd.recompute import checkpointed
from propc.runtime.checks.out_of_memory import explaining
from propc.runtime.observe.watched_plan import heard
from propc.runtime.observe.watcher import BLOCK, in_reverse, label_of
from propc.runtime.plan.liveness import Block, block
from propc.runtime.plan.runner import Line
from propc.runtime.plan.step import Plan, Step


def in_blocks(graph: PropagationGraph, plan: Plan, wanted: Collection[int]) -> Plan:
    """The plan with one step for each block of the schedule.

    Args:
        wanted: the places of what is read after the plan.
    """
    number = blocks_of(graph)
    found: list[Step] = []
    start = 0
    for inside, steps in groupby(plan, lambda step: number.get(step.node.name)):
        stop = start + len(list(steps))
        found += plan[start:stop] if inside is None else [_as_one(graph, block(plan, start, stop, wanted))]
        start = stop
    return found


def blocks_of(graph: PropagationGraph) -> dict[str, int]:
    """For each node of a block, the number of the block."""
    return {name: i for i, names in enumerate(graph.schedule.blocks) for name in names}


def _as_one(graph: PropagationGraph, whole: Block) -> Step:
    line = Line(graph, whole.steps, whole.reads, whole.writes)
    inside = heard(whole.steps)
    nodes = [node for each in inside.values() for node in each]
    run = partial(recomputing(graph, nodes), line)
    names = ((label_of(BLOCK, nodes), ()), *inside.items())
    return Step(nodes[0], lambda *given: run(given), whole.reads, whole.writes, names)


def recomputing(graph: PropagationGraph, nodes: Sequence[Node]) -> Callable[..., tuple[Tensor, ...]]:
    """Runs a function of tensors, which does the steps of nodes, so that the reverse pass runs it again."""
    devices = {kind.device for node in nodes for kind in node.outputs}
    return partial(checkpointed, devices=devices, around=partial(_in_reverse, graph, nodes))


@contextmanager
def _in_reverse(graph: PropagationGraph, nodes: Sequence[Node]) -> Iterator[None]:
    with explaining(graph, nodes, backward=True), in_reverse():
        yield
