"""Nodes as their propagators see them."""

from __future__ import annotations

from torch import nn

from propc.ir.graph import PropagationGraph
from propc.ir.nodes.node import Node
from propc.propagators.propagator import NodeView
from propc.util.estimator_state import EstimatorState


class NodeViews:
    """Makes views of a graph's nodes, with the modules of state that their propagators keep from call to call."""

    def __init__(self, graph: PropagationGraph, state: EstimatorState) -> None:
        self.graph, self.state = graph, state
        self.batch = None if graph.program is None else graph.batch

    def view(self, node: Node, touched: list[NodeView] | None = None) -> NodeView:
        """A node as its propagator sees it."""
        return NodeView(node, self.batch, state=self._module, touched=touched)

    def _module(self, view: NodeView) -> nn.Module | None:
        rule = view.record.propagator
        known = view.name.replace(".", "/") in self.state.parts
        made = rule.state(view) if rule is not None and not known else None
        return self.state.part(view.name, lambda: made) if made is not None or known else None
