"""What lowerings are given: a graph, the places of its values, and what its steps have in common."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

from propc.ir.graph import PropagationGraph
from propc.ir.nodes.node import Node
from propc.ir.records import Route
from propc.runtime.checks.values import Mode
from propc.runtime.lowering.alternative_copies import Copies
from propc.runtime.lowering.node_views import NodeViews
from propc.runtime.lowering.site_contexts import Sites
from propc.runtime.lowering.slots import Places
from propc.runtime.lowering.token_reads import Inlets
from propc.runtime.plan.scan_loop import Loop
from propc.runtime.plan.step import Step
from propc.runtime.plates.segments import Lifting
from propc.util.estimator_state import EstimatorState


class Planner:
    """A graph on its way to a plan.

    Args:
        graph: after all passes.
        state: what estimators keep from call to call.
        mode: whether steps look at values.

    Attributes:
        places: of its values and tokens.
        routes: those of each cost.
        views: makes views of nodes for their propagators.
        sites: what they know of themselves in a call.
        copies: what goes round the steps of copies.
        inlets: finds how nodes read tokens, and plans their sums.
        steps: the plan so far.
        loops: the scans among them.
    """

    def __init__(self, graph: PropagationGraph, state: EstimatorState, mode: Mode) -> None:
        self.graph, self.state, self.mode = graph, state, mode
        self.places = Places(graph)
        self.routes: dict[str, list[Route]] = {}
        for route in graph.routes:
            self.routes.setdefault(route.source, []).append(route)
        self.views = NodeViews(graph, state)
        self.sites = Sites(graph, self.views, mode.validate)
        self.copies = Copies(graph)
        self.steps: list[Step] = []
        self.loops: list[Loop] = []
        self.inlets = Inlets(graph, self.places, self.steps.append)

    def step(self, node: Node, function: Callable[..., Sequence[Any]], *more: int) -> Step:
        """A step that makes what a node makes, its tokens behind its outputs, from what it reads and `more`."""
        return Step(node, function, (*self.places.reads(node), *more), self.places.writes(node))

    @cached_property
    def lift(self) -> Lifting:
        """Takes the code of segments into their plates."""
        return Lifting(self.graph)

    def plates(self, node: Node) -> tuple[Any, ...]:
        """Where a node stands, and what it reads: the plates and dimensions that its code depends on."""
        return node.plates, node.dims, tuple(self.graph.plates_of(ref) for ref in node.inputs)
