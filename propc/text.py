"""The text form: one line a node in program order, then the routes. Deterministic."""

from __future__ import annotations

from typing import TYPE_CHECKING

from propc.ir import Cost, Expand, Input, Named, Node, Opaque, Output, Parameter, Route, Segment, Site
from propc.tracing import operations

if TYPE_CHECKING:
    from propc.graph import PropagationGraph


def to_text(graph: PropagationGraph) -> str:
    """The whole IR as text."""
    batch = f"  batch {graph.batch}" if graph.batch is not None else ""
    lines = [f"graph {graph.name}{batch}"]
    lines += [f"  {_line(node)}" for node in graph]
    if graph.routes:
        lines.append("routes")
        lines += [f"  {_route(route)}" for route in graph.routes]
    if graph.joins:
        lines.append("joins")
        lines += [f"  {j.name} = {' + '.join(map(str, j.members))}" for j in graph.joins]
    return "\n".join(lines)


def operations_of(segment: Segment) -> list[str]:
    """Names of a segment's operations, in order."""
    return [name.strip("_") for name in
            (n.target if isinstance(n.target, str) else operations.name_of(n.target) for n in segment.body)
            if name not in ("getitem",)]


def _line(node: Node) -> str:
    made = ", ".join(str(t) for t in node.outputs)
    reads = ", ".join(str(r) for r in node.inputs)
    where = f"  # {node.where}" if str(node.where) else ""
    left = f"%{node.name}: {made}" if not isinstance(node, Output) else "output"
    return f"{left} = {_right(node, reads)}{where}" if not isinstance(node, Output) else f"return {reads}{where}"


def _right(node: Node, reads: str) -> str:
    if isinstance(node, (Input, Parameter)):
        grad = ", requires_grad" if node.outputs[0].requires_grad else ""
        return f"{node.kind.value} {node.path}{grad}"
    if isinstance(node, Segment):
        stage = f" @{node.stage.name}" if node.stage is not None else ""
        return f"segment{stage}({reads}) {{{', '.join(operations_of(node))}}}"
    if isinstance(node, Site):
        rule = f" by {node.estimator}" if node.rule is not None else ""
        phi = ", ".join(f"{f}={r}" for f, r in zip(node.spec.fields, node.inputs))
        return f"site {node.spec}({phi}){rule}"
    if isinstance(node, Expand):
        kind = "exact" if node.exact else "random signs"
        return f"expand target {node.target} in {node.directions} direction(s), {kind} ({reads})"
    if isinstance(node, Cost):
        return f"cost({reads})"
    return f"{node.kind.value if isinstance(node, (Named, Opaque)) else 'node'}({reads})"


def _route(route: Route) -> str:
    ends = ", ".join(map(str, route.targets))
    return f"{route.source} -> {ends}  [{route.kind}: {', '.join(route.fields)}, {type(route.baseline).__name__}]"
