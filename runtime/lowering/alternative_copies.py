"""How copies of nodes run on alternatives: without gradient, and perhaps from the random numbers of their originals."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from propc.ir.graph import PropagationGraph
from propc.ir.nodes.node import Node
from propc.ir.nodes.site import Site
from propc.runtime.autograd.run_once import once
from propc.runtime.plan.step import Step
from propc.util.torch_rng import from_state, state_of


class Copies:
    """What goes round the steps of copies.

    Attributes:
        repeated: sites whose copies draw from the same random numbers.
        states: of the generator, in front of the draws of these sites.
    """

    def __init__(self, graph: PropagationGraph) -> None:
        copies = (site for site in graph.sites if site.copy_of)  # the plate of alternatives is their outermost
        self.repeated = {site.copy_of for site in copies if graph.plate(site.plates[0]).common}
        self.states: dict[str, Tensor] = {}

    def around(self, step: Step) -> Step:
        """A step, as copies or what they copy want it."""
        node, run = step.node, step.function
        if node.copy_of:
            again = isinstance(node, Site) and node.copy_of in self.repeated
            return replace(step, function=torch.no_grad()(self._again(node, run) if again else run))
        return replace(step, function=self._kept(node, run)) if node.name in self.repeated else step

    def _kept(self, node: Node, run: Callable[..., Any]) -> Callable[..., Any]:
        states, name, device = self.states, node.name, node.outputs[0].device

        def remembering(*values: Any) -> Any:
            states[name] = state_of(device)
            return run(*values)

        return remembering

    def _again(self, node: Node, run: Callable[..., Any]) -> Callable[..., Any]:
        states, name, device = self.states, node.copy_of, node.outputs[0].device

        def again(*values: Any) -> Any:
            with from_state(device, once(lambda: states[name], draws=False)):
                return run(*values)

        return again
