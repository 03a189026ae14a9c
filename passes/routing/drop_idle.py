"""Drop idle nodes: those in the middle of a network that would only hand messages on cost nothing."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from propc.ir.graph import PropagationGraph
from propc.ir.nodes.named import Named
from propc.ir.nodes.node import Node
from propc.ir.records import Ref
from propc.passes.pipeline import Pass, register


@register("drop-idle")
@dataclass(frozen=True)
class DropIdle(Pass):
    """Leave out nodes whose propagator does nothing; who read them reads what they read.

    A node stays where the messages would tell: where a pass begins or ends; where a node of the network names its
    targets; and, unless it stands in a plain row, where what it hands on merges with something else, since a sum
    would count once what arrives twice, and the order of arrival may matter.
    """

    name: ClassVar[str] = "drop-idle"

    def apply(self, graph: PropagationGraph) -> PropagationGraph:
        readers: dict[str, list[Node]] = {name: [] for name in graph.nodes}
        for node in graph:
            for ref in node.inputs:
                readers[ref.node].append(node)
        if any(_is_addressed(node) for node in graph):
            return graph
        instead: dict[Ref, Ref] = {}
        nodes: dict[str, Node] = {}
        for name, node in graph.nodes.items():
            if _is_idle(node) and _is_in_a_row(node, readers):
                (ref,) = node.inputs
                instead[Ref(name)] = instead.get(ref, ref)
                continue
            if instead and not instead.keys().isdisjoint(node.inputs):
                node = replace(node, inputs=tuple([instead.get(ref, ref) for ref in node.inputs]))
            nodes[name] = node
        return replace(graph, nodes=nodes) if instead else graph


def _is_addressed(node: Node) -> bool:
    """Whether it says itself where its messages go."""
    rule = node.propagator
    if rule is None:
        return False
    return not (rule.targets is None and rule.forward_targets is None and getattr(node, "forced", None) is None)


def _is_in_a_row(node: Node, readers: dict[str, list[Node]]) -> bool:
    """Whether it has one node before and one behind, which have no other way to or from there."""
    if len(node.inputs) != 1 or len(readers[node.name]) != 1:
        return False
    (before,), (after,) = node.inputs, readers[node.name]
    return len(after.inputs) == 1 and len(readers[before.node]) == 1


def _is_idle(node: Node) -> bool:
    """Whether it has no value and its propagator does nothing."""
    return isinstance(node, Named) and not node.outputs and node.rule is not None and node.rule.idle
