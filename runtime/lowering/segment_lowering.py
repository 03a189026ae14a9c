"""Segments: the code of their stage, in plates lifted, in chunks of rows."""

from __future__ import annotations

from collections.abc import Hashable

from propc.ir.nodes.segment import Segment
from propc.runtime.lowering.lowering import Lowering, lowers
from propc.runtime.lowering.planner import Planner
from propc.runtime.plan.step import Step
from propc.runtime.plates.batch_chunks import ByRows


@lowers(Segment)
class SegmentLowering(Lowering):
    """Runs again as it is."""

    def step(self, planner: Planner, node: Segment) -> Step:
        assert node.stage is not None
        if node.rows:
            return planner.step(node, ByRows(planner.graph, node, lambda: planner.mode.first))
        return planner.step(node, planner.lift(node) if node.plates else node.stage.module.forward)

    def obstacle(self, planner: Planner, node: Segment) -> str:
        return "it takes the rows of the batch in chunks" if node.rows else ""

    def key(self, planner: Planner, node: Segment) -> Hashable:
        assert node.stage is not None
        return "segment", id(node.stage.module), planner.plates(node), node.spread
