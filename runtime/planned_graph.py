"""A graph with its plan: what a backend is shown, and what a call runs."""

from __future__ import annotations

from propc.ir.graph import PropagationGraph
from propc.runtime.checks.values import Mode
from propc.runtime.lowering.lower import lowered
from propc.runtime.lowering.planner import Planner
from propc.runtime.observe.cotangent_probe import Probe, probed
from propc.runtime.plan.blocks import in_blocks
from propc.runtime.plan.runner import Line
from propc.runtime.plan.scan_loop import rolled
from propc.runtime.plan.step import Plan
from propc.util.estimator_state import EstimatorState


class PlannedGraph:
    """A graph and the steps that run it.

    Args:
        graph: after all passes.
        state: what estimators keep from call to call.
        validate: check parameters and costs.
        probe: hears what sites send to their φ.

    Attributes:
        mode: whether steps look at values.
        planner: what the plan was made with.
        places: of its values and tokens.
        lowered: the steps as each node's lowering gives them, in order.
        plan: the same, heard by the probe if there is one.
    """

    def __init__(
        self, graph: PropagationGraph, state: EstimatorState, validate: bool = True, probe: Probe | None = None
    ) -> None:
        meta = any(kind.device.type == "meta" for node in graph for kind in node.outputs)  # there are no values there
        self.graph, self.state, self.mode = graph, state, Mode(validate and not meta)
        self.planner = Planner(graph, state, self.mode)
        self.places, self.lowered = self.planner.places, lowered(self.planner)
        self.plan = probed(self.lowered, probe)

    def line_of(self, plan: Plan) -> Line:
        """A plan as a call runs it: scans as loops, block by block where the schedule has blocks."""
        returned = self.places.returned
        plan = rolled(self.graph, plan, self.planner.loops, returned)
        return Line(self.graph, in_blocks(self.graph, plan, returned), self.places.given, returned)

    def keeping(self, plan: Plan) -> Line:
        """A plan that gives the values of all places."""
        return Line(self.graph, plan, self.places.given, range(len(self.places)))
