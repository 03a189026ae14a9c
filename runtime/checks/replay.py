"""Running a graph once more on other draws: which rows of the batch, and elements of plates, mix."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from propc.ir.graph import PropagationGraph
from propc.ir.nodes.compare_alternatives import CompareAlternatives
from propc.ir.nodes.cost import Cost
from propc.ir.nodes.named import Named
from propc.ir.nodes.node import Node
from propc.ir.nodes.opaque import Opaque
from propc.ir.nodes.reduce import Reduce
from propc.ir.nodes.resample import Resample
from propc.ir.nodes.scan import Scan
from propc.ir.nodes.segment import Segment
from propc.ir.nodes.site import Site
from propc.ir.records import Ref
from propc.runtime.checks.independence import check_independence
from propc.runtime.plan.codegen import Values
from propc.runtime.plan.planner import Planner
from propc.runtime.plan.slots import Places
from propc.runtime.plates.reduce import reduced
from propc.util.torch_rng import same_random


class Replay:
    """Runs a graph again from the values of a call.

    Args:
        graph: which it is.
        places: of its values.
        planner: with its steps.
    """

    def __init__(self, graph: PropagationGraph, places: Places, planner: Planner) -> None:
        self.graph, self.places, self.planner = graph, places, planner

    def check(self, values: Values) -> None:
        """Check that black boxes keep rows apart and, where estimators need it, that all of the program does.

        Args:
            values: all of a call.
        """
        for box in self.planner.boxes.values():
            box.check(*self._ends(values, box.node))
        if any(s.rule is not None and s.rule.per_sample for s in self.graph.sites):
            self.check_rows(values)

    def check_rows(self, values: Values) -> None:
        """Check that rows, and elements of plates, do not mix."""
        drawn = [node for node in self.graph if isinstance(node, (Site, Resample)) and not node.copy_of]
        draws = {ref: values[self.places.slots[ref]] for node in drawn for ref in node.made}
        check_independence(self.graph, lambda changed: self.run(values, changed), draws)

    def run(self, first: Values, draws: Mapping[Ref, Tensor]) -> dict[Ref, Any]:
        """All values for given draws, from the leaves of a first run.

        What black boxes do not repeat stays as it was.

        Gradients are on, for programs with hooks or `torch.autograd.grad` inside.
        """
        places = self.places
        inputs, held = ([fresh(first[i]) for i in where] for where in (places.inputs, places.held))
        values = places.table(inputs, held)
        with same_random():
            torch.manual_seed(0)
            for node, call in self.planner.plan:
                if node.copy_of:
                    continue
                if isinstance(node, (Site, Resample)):
                    for ref in node.made:
                        slot = places.slots[ref]
                        values[slot] = fresh(draws[ref], first[slot].requires_grad)
                elif isinstance(node, Opaque):
                    again = self.planner.boxes[node.name].again(self._ends(values, node)[0], self._ends(first, node)[1])
                    start = places.first(node)
                    values[start : start + len(node.outputs)] = again
                elif isinstance(node, (Cost, CompareAlternatives, Named)):
                    values[places.first(node)] = values[places.slots[node.inputs[0]]]
                elif isinstance(node, Reduce):
                    mean = reduced(self.graph, node)
                    values[places.first(node)] = mean(*[values[i] for i in places.reads(node)])
                elif isinstance(node, Scan):
                    for made, ref in zip(node.made, node.inputs):
                        values[places.slots[made]] = values[places.slots[ref]]
                elif isinstance(node, Segment):
                    call(values)
        return places.named(values)

    def _ends(self, values: Values, node: Node) -> tuple[list[Tensor], list[Tensor]]:
        """What a node has read and made."""
        made = [values[self.places.slots[ref]] for ref in node.made]
        return [values[i] for i in self.places.reads(node)], made


def fresh(tensor: Tensor, wants: bool | None = None) -> Tensor:
    """A copy with a history of its own, that can be written into."""
    wants = tensor.requires_grad if wants is None else wants
    return tensor.detach().requires_grad_(wants).clone()
