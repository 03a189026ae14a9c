"""Draws from the Gaussian fitted to the rows of what is read."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from propc.ir.nodes.resample import Resample
from propc.runtime.autograd.gaussian_refit import refit
from propc.runtime.lowering.lowering import LOOKS, Lowering, lowers
from propc.runtime.lowering.planner import Planner
from propc.runtime.plan.step import Step, Values


@lowers(Resample)
class ResampleLowering(Lowering):
    """On other draws they are given."""

    def step(self, planner: Planner, node: Resample) -> Step:
        routes = planner.routes.get(node.name, ())
        inlets = [planner.inlets.joined(route.through, node.plates, node, ()) for route in routes]
        count, on_cpu, mode = len(node.inputs), node.outputs[0].device.type == "cpu", planner.mode

        def run(*given: Tensor) -> Sequence[Tensor]:
            check = mode.validate and (on_cpu or not mode.checked)
            tokens = [inlet.fit(token) for inlet, token in zip(inlets, given[count:])]
            return refit(node, given[:count], tokens, check)

        return planner.step(node, run, *(inlet.read for inlet in inlets))

    def replayed(self, planner: Planner, step: Step, first: Values) -> None:
        return None

    def obstacle(self, planner: Planner, node: Resample) -> str:
        return LOOKS
