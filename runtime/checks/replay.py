"""Running a graph once more on other draws: which rows of the batch, and elements of plates, mix."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from propc.ir.nodes.opaque import Opaque
from propc.ir.nodes.resample import Resample
from propc.ir.nodes.site import Site
from propc.ir.records import Ref
from propc.runtime.checks.independence import check_independence
from propc.runtime.lowering.lower import replayed
from propc.runtime.lowering.planner import Planner
from propc.runtime.plan.code_writer import straight
from propc.runtime.plan.step import Plan, Values
from propc.runtime.plates.black_boxes import OpaqueCall
from propc.util.torch_rng import same_random


class Replay:
    """Runs a graph again from the values of a first call.

    Args:
        planner: of the graph.
        plan: its steps.
    """

    def __init__(self, planner: Planner, plan: Plan) -> None:
        self.planner, self.plan = planner, plan

    def check(self, first: Values) -> None:
        """Check that black boxes keep rows apart and, where estimators need it, that all of the program does."""
        graph, places = self.planner.graph, self.planner.places
        for box in graph.of(Opaque):
            read, made = ([first[i] for i in where] for where in (places.reads(box), places.writes(box)))
            OpaqueCall(graph, box).check(read, made)
        if any(site.rule is not None and site.rule.per_sample for site in graph.sites):
            self.check_rows(first)

    def check_rows(self, first: Values) -> None:
        """Check that rows, and elements of plates, do not mix.

        Gradients are on in the replays, for programs with hooks or `torch.autograd.grad` inside.
        """
        graph, places = self.planner.graph, self.planner.places
        drawn = [node for node in graph if isinstance(node, (Site, Resample)) and not node.copy_of]
        draws = {ref: first[places.slots[ref]] for node in drawn for ref in node.made}
        given = (*places.given, *(places.slots[ref] for ref in draws))
        run = straight(replayed(self.planner, self.plan, first), given, range(len(places)))

        def replay(changed: Mapping[Ref, Tensor]) -> dict[Ref, Any]:
            values = [*(first[i] for i in places.given), *(changed[ref] for ref in draws)]
            with same_random():
                torch.manual_seed(0)
                found = run(*(fresh(value, first[i].requires_grad) for i, value in zip(given, values)))
            return places.named(found)

        check_independence(graph, replay, draws)


def fresh(tensor: Tensor, wants: bool | None = None) -> Tensor:
    """A copy with a history of its own, that can be written into."""
    wants = tensor.requires_grad if wants is None else wants
    return tensor.detach().requires_grad_(wants).clone()
