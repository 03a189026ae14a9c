"""Drop idle nodes: those of a network that would only hand messages on cost nothing."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from propc.graph import PropagationGraph
from propc.ir import Named, Node, Ref
from propc.passes.base import Pass, register


@register("drop-idle")
@dataclass(frozen=True)
class DropIdle(Pass):
    """Leave out nodes whose propagator does nothing; who read them reads what they read."""

    name: ClassVar[str] = "drop-idle"

    def apply(self, graph: PropagationGraph) -> PropagationGraph:
        instead: dict[Ref, tuple[Ref, ...]] = {}
        nodes: dict[str, Node] = {}
        for name, node in graph.nodes.items():
            if instead and not instead.keys().isdisjoint(node.inputs):
                reads = dict.fromkeys(i for ref in node.inputs for i in instead.get(ref, (ref,)))
                node = replace(node, inputs=tuple(reads))
            if _is_idle(node):
                instead[Ref(name)] = node.inputs
            else:
                nodes[name] = node
        return replace(graph, nodes=nodes) if instead else graph


def _is_idle(node: Node) -> bool:
    """Whether it has no value and its propagator does nothing."""
    return isinstance(node, Named) and not node.outputs and node.rule is not None and node.rule.idle
