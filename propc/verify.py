"""The invariants of a propagation graph, one function each; all violations are reported at once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from propc.errors import GraphError
from propc.ir import Cost, Output, Segment, Site

if TYPE_CHECKING:
    from propc.graph import PropagationGraph


def verify(graph: PropagationGraph) -> None:
    """Raise a `GraphError` with every violation found."""
    found = [text for check in (_names, _values, _order, _interfaces, _costs, _routes, _schedule)
             for text in check(graph)]
    if found:
        raise GraphError(f"the graph {graph.name!r} breaks {len(found)} invariant(s):\n  " + "\n  ".join(found))


def _names(graph: PropagationGraph) -> Iterator[str]:
    for key, node in graph.nodes.items():
        if key != node.name:
            yield f"node {node.name!r} is filed under {key!r}"
    if "output" not in graph.nodes or not isinstance(graph.nodes["output"], Output):
        yield "there is no output node"


def _values(graph: PropagationGraph) -> Iterator[str]:
    for node in graph:
        for ref in (*node.inputs, *(t for t in getattr(node, "tangents", ()) if t is not None)):
            source = graph.nodes.get(ref.node)
            if source is None:
                yield f"{node.kind.value} {node.name!r} ({node.where}) reads {ref}, which does not exist"
            elif ref.port >= len(source.outputs):
                yield f"{node.kind.value} {node.name!r} ({node.where}) reads {ref}, but {ref.node!r} has " \
                      f"{len(source.outputs)} output(s)"


def _order(graph: PropagationGraph) -> Iterator[str]:
    seen: set[str] = set()
    for node in graph:
        for ref in node.inputs:
            if ref.node in graph.nodes and ref.node not in seen:
                yield f"{node.kind.value} {node.name!r} ({node.where}) reads {ref} before it is made, or in a cycle"
        seen.add(node.name)


def _interfaces(graph: PropagationGraph) -> Iterator[str]:
    for node in graph:
        if isinstance(node, Segment):
            if len(node.inputs) != len(node.arguments) or len(node.outputs) != len(node.results):
                yield f"segment {node.name!r} has inputs or outputs that its code does not have"
            if len(node.dependence) != len(node.outputs):
                yield f"segment {node.name!r} does not say what its outputs depend on"
        elif isinstance(node, Site) and len(node.inputs) != len(node.spec.fields):
            yield f"site {node.name!r} ({node.where}) has {len(node.inputs)} inputs for {len(node.spec.fields)} φ"


def _costs(graph: PropagationGraph) -> Iterator[str]:
    for cost in graph.of(Cost):
        if not cost.outputs[0].dtype.is_floating_point or len(cost.shape) > 1:
            yield f"cost {cost.name!r} ({cost.where}) is {cost.outputs[0]}; a cost is floating point, [batch] or scalar"


def _routes(graph: PropagationGraph) -> Iterator[str]:
    index = graph.influence.index
    for route in graph.routes:
        source = graph.nodes.get(route.source)
        if not isinstance(source, Cost):
            yield f"the route from {route.source!r} does not begin at a cost"
            continue
        if not route.targets:
            yield f"the route from {route.source!r} ({source.where}) has no end"
        if len(set(route.targets)) != len(route.targets):
            yield f"the route from {route.source!r} ({source.where}) reaches a site twice"
        reached = graph.influence.values[source.inputs[0]].any
        for target in route.targets:
            site = graph.nodes.get(target.site)
            if not isinstance(site, Site):
                yield f"the route {route.source} -> {target} ends at no site"
            elif site.rule is None or target.index >= len(site.rule.baselines):
                yield f"the route {route.source} -> {target} ends at a site that takes no such message"
            elif not reached >> index[target.site] & 1:
                yield f"the route {route.source} -> {target} ends at a site that does not influence the cost"


def _schedule(graph: PropagationGraph) -> Iterator[str]:
    forward = graph.schedule.forward
    if not forward:
        return
    if sorted(forward) != sorted(graph.nodes):
        yield "the schedule does not run every node exactly once"
    done: set[str] = set()
    for name in forward:
        node = graph.nodes.get(name)
        if node is not None and any(ref.node not in done for ref in node.inputs):
            yield f"the schedule runs {name!r} before what it reads"
        done.add(name)
