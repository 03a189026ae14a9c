"""What turns cotangents on a site's φ into variances: code without a gradient."""

from __future__ import annotations

from collections.abc import Hashable

import torch

from propc.ir.nodes.expand import Expand
from propc.runtime.lowering.lowering import Lowering, lowers
from propc.runtime.lowering.planner import Planner
from propc.runtime.plan.step import Step, Values


@lowers(Expand)
class ExpandLowering(Lowering):
    """On other draws nobody reads it."""

    def step(self, planner: Planner, node: Expand) -> Step:
        return planner.step(node, torch.no_grad()(node.code.forward))

    def replayed(self, planner: Planner, step: Step, first: Values) -> None:
        return None

    def obstacle(self, planner: Planner, node: Expand) -> str:
        return ""

    def key(self, planner: Planner, node: Expand) -> Hashable:
        return "expand", id(node.code)
