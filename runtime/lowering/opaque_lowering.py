"""Black boxes: called once a call."""

from __future__ import annotations

from dataclasses import replace

from propc.ir.nodes.opaque import Opaque
from propc.runtime.autograd.run_once import once_of
from propc.runtime.lowering.lowering import Lowering, lowers
from propc.runtime.lowering.planner import Planner
from propc.runtime.plan.step import Step, Values
from propc.runtime.plates.black_boxes import OpaqueCall
from propc.runtime.plates.segments import chunked


@lowers(Opaque)
class OpaqueLowering(Lowering):
    """On other draws called again where it gives the same twice; else what it gave at first."""

    def step(self, planner: Planner, node: Opaque) -> Step:
        box = OpaqueCall(planner.graph, node)
        spread = (node.plates,) * len(node.outputs)
        run = chunked(planner.graph, box.call, box.reads, spread) if box.folds else box.call
        return planner.step(node, once_of(run))

    def replayed(self, planner: Planner, step: Step, first: Values) -> Step:
        assert isinstance(step.node, Opaque)
        box, found = OpaqueCall(planner.graph, step.node), [first[i] for i in step.writes]
        return replace(step, function=lambda *given: box.again(given, found))

    def obstacle(self, planner: Planner, node: Opaque) -> str:
        return "a black box"
