"""Named values: handed on, perhaps through a propagator."""

from __future__ import annotations

from functools import partial

from torch import Tensor

from propc.ir.nodes.named import Named
from propc.ir.rules import NodeRule
from propc.propagators.gated import through
from propc.runtime.lowering.lowering import Lowering, lowers
from propc.runtime.lowering.node_views import NodeViews
from propc.runtime.lowering.planner import Planner
from propc.runtime.plan.step import Step, Values, same


@lowers(Named)
class NamedLowering(Lowering):
    """On other draws the value is handed on alone."""

    def step(self, planner: Planner, node: Named) -> Step:
        rule = node.rule
        if rule is None or rule.idle:
            return planner.step(node, same)
        return planner.step(node, partial(_through, rule, planner.views, node))

    def replayed(self, planner: Planner, step: Step, first: Values) -> Step:
        return planner.step(step.node, same)

    def obstacle(self, planner: Planner, node: Named) -> str:
        return "a propagator that is called at every step"


def _through(rule: NodeRule, views: NodeViews, node: Named, value: Tensor) -> tuple[Tensor]:
    """A value on which a propagator acts."""
    return (through(rule, views.view(node), value),)
