"""Which nodes can run a second time, and give what they gave at first."""

from __future__ import annotations

from collections.abc import Container, Iterator

from propc.ir.graph import PropagationGraph
from propc.ir.nodes.node import Node
from propc.ir.nodes.segment import Segment
from propc.ir.records import Ref


def once_only(graph: PropagationGraph) -> dict[str, str]:
    """Names of the nodes that must not run again, with the reason."""
    written = beside_writes(graph)
    return {node.name: why for node in graph if (why := _why(node, written))}


def beside_writes(graph: PropagationGraph) -> frozenset[str]:
    """Names of the nodes that read or make a tensor into which a segment writes that did not make it.

    When such a node runs again, in the reverse pass, the tensor may hold something else.
    """
    written = set(_written(graph))
    if not written:
        return frozenset()
    memory = _memory(graph)
    touched = (n for n in graph if any(memory.get(ref) in written for ref in (*n.inputs, *n.made)))
    return frozenset(node.name for node in touched)


def _why(node: Node, written: Container[str]) -> str:
    """Why a node must not run again; empty if it may."""
    if node.why_once:
        return node.why_once
    if node.name in written:
        return "has to do with a tensor that is written into"
    rule = node.propagator
    if rule is not None and rule.runs_user_code and not rule.idle:
        return f"has the propagator {rule.name!r}"
    return ""


def _written(graph: PropagationGraph) -> Iterator[int]:
    """The memory of tensors that segments write into, or hang hooks on, and that others made."""
    for segment in graph.of(Segment):
        outside = {argument.meta.get("memory") for argument in segment.arguments}
        for step in segment.body:
            if step.meta.get("writes"):
                yield from step.meta["written"] & outside


def _memory(graph: PropagationGraph) -> dict[Ref, int]:
    """The memory behind values that segments read or make."""
    found: dict[Ref, int] = {}
    for segment in graph.of(Segment):
        pairs = (*zip(segment.inputs, segment.arguments), *zip(segment.made, segment.results))
        found.update({ref: step.meta["memory"] for ref, step in pairs if "memory" in step.meta})
    return found
