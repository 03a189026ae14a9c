"""Attach propagators to nodes, sites and costs from outside the program."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from propc.errors import GraphError, message, nearest
from propc.ir.graph import PropagationGraph
from propc.ir.nodes.cost import Cost
from propc.ir.nodes.named import Named
from propc.ir.nodes.node import Node
from propc.ir.nodes.site import Site
from propc.passes.pipeline import Pass, register
from propc.propagators.registry import at_node
from propc.util.patterns import matches


@register("attach")
@dataclass(frozen=True)
class Attach(Pass):
    """Give nodes a propagator by name or pattern, as ``propagator=`` in the program would.

    Attributes:
        propagators: patterns of the names of nodes, costs and sites, each with a propagator or the name
            of one (at sites an estimator, too). A later pattern overrides an earlier one.

    Raises:
        GraphError: a pattern that matches nothing.
    """

    name: ClassVar[str] = "attach"
    propagators: Mapping[str, Any] = field(default_factory=dict)

    def apply(self, graph: PropagationGraph) -> PropagationGraph:
        known = [node for node in graph if isinstance(node, (Named, Cost, Site))]
        changed: dict[str, Node] = {}
        for pattern, choice in self.propagators.items():
            matched = [node for node in known if matches(node.name, pattern)]
            if not matched:
                raise GraphError(
                    message(f"the pattern {pattern!r} matches no node", nearest(pattern, [node.name for node in known]))
                )
            changed.update((node.name, _with(node, choice)) for node in matched)
        return graph.with_nodes(*changed.values())


def _with(node: Node, choice: Any) -> Node:
    if isinstance(node, Site):
        return replace(node, requested=choice)
    assert isinstance(node, (Named, Cost))
    return replace(node, rule=at_node(choice, node.called, node.name, node.where))
