"""Which nodes can run a second time, and give what they gave at first."""

from __future__ import annotations

from collections.abc import Iterator

from propc.graph import PropagationGraph
from propc.ir import Cost, Named, Node, Output, Ref, Segment, Site
from propc.propagators.gated import Gated


def once_only(graph: PropagationGraph) -> dict[str, str]:
    """Names of the nodes that must not run again, with the reason."""
    memory = _memory(graph)
    written = set(_written(graph))
    return {node.name: why for node in graph if (why := _why(node, memory, written))}


def _why(node: Node, memory: dict[Ref, int], written: set[int]) -> str:
    """Why a node must not run again; empty if it may."""
    if isinstance(node, Output):
        return "is what is returned"
    if isinstance(node, Segment) and any("generator" in step.kwargs for step in node.body):
        return "draws from a generator of its own"
    if any(memory.get(ref) in written for ref in (*node.inputs, *node.made)):
        return "has to do with a tensor that is written into"
    rule = node.propagator
    by_user = isinstance(node, (Cost, Named)) or (isinstance(node, Site) and isinstance(rule, Gated))
    if by_user and rule is not None and not rule.idle:
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
