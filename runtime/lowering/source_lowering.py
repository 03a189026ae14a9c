"""Inputs and parameters: their values are given."""

from __future__ import annotations

from propc.ir.nodes.leaves import Input, Parameter
from propc.ir.nodes.node import Node
from propc.runtime.lowering.lowering import Lowering, lowers
from propc.runtime.lowering.planner import Planner


@lowers(Input, Parameter)
class SourceLowering(Lowering):
    """No step."""

    def step(self, planner: Planner, node: Node) -> None:
        return None
