"""Costs beside what they would be on alternatives of a site."""

from __future__ import annotations

from torch import Tensor

from propc.ir.named_dims import aligned
from propc.ir.nodes.compare_alternatives import CompareAlternatives
from propc.ir.nodes.site import Site
from propc.runtime.autograd.weigh_alternatives import compared
from propc.runtime.checks import values as checks
from propc.runtime.lowering.lowering import LOOKS, Lowering, lowers
from propc.runtime.lowering.planner import Planner
from propc.runtime.plan.step import Step, Values


@lowers(CompareAlternatives)
class CompareLowering(Lowering):
    """On other draws the cost alone."""

    def step(self, planner: Planner, node: CompareAlternatives) -> Step:
        ((token,),) = (route.targets for route in planner.routes[node.name])
        site, mode = planner.graph[token.site], planner.mode
        assert isinstance(site, Site)
        have, want = planner.graph.plates_of(node.inputs[1]), (node.over, *node.plates)
        inlet = planner.inlets.single(token, node.plates, node, (), node.over)
        on_cpu = node.outputs[0].device.type == "cpu"

        def run(cost: Tensor, others: Tensor, sent: Tensor) -> tuple[Tensor]:
            alternatives = aligned(others, have, want)
            if mode.validate and (on_cpu or not mode.checked):
                checks.finite_alternatives(node, site, alternatives)
            return (compared(cost, alternatives, inlet.fit(sent), site),)

        return planner.step(node, run, inlet.read)

    def replayed(self, planner: Planner, step: Step, first: Values) -> Step:
        return Step(step.node, lambda cost: (cost,), step.reads[:1], step.writes)

    def obstacle(self, planner: Planner, node: CompareAlternatives) -> str:
        return LOOKS
