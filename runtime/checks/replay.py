"""Running a graph once more on other draws: which rows of the batch, and elements of plates, mix."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from propc.ir.nodes.opaque import Opaque
from propc.ir.nodes.resample import Resample
from propc.ir.nodes.site import Site
from propc.ir.records import Ref
from propc.runtime.checks.independence import find_mixed
from propc.runtime.checks.replayed_noise import ReplayedNoise
from propc.runtime.lowering.lower import replayed
from propc.runtime.lowering.planner import Planner
from propc.runtime.plan.code_writer import straight
from propc.runtime.plan.step import Plan, Values
from propc.runtime.plates.black_boxes import OpaqueCall
from propc.util.torch_rng import same_random, seed, state_of


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
        if any(map(_needs_rows, graph.sites)):
            self.check_rows(first)

    def check_rows(self, first: Values) -> None:
        """Check that rows, and elements of plates, do not mix.

        Raises:
            GraphError: they do.
        """
        graph, places = self.planner.graph, self.planner.places
        drawn = [node for node in graph if isinstance(node, (Site, Resample)) and not node.copy_of]
        draws = {ref: first[places.slots[ref]] for node in drawn for ref in node.made}
        rerun = _Rerun(self.planner, self.plan, first, tuple(draws))
        while (mixed := find_mixed(graph, rerun, draws)) is not None:
            if not rerun.learned():
                raise mixed


class _Rerun:
    """Runs a graph on given draws, and gives all values.

    Gradients are on, for programs with hooks or `torch.autograd.grad` inside.
    """

    def __init__(self, planner: Planner, plan: Plan, first: Values, draws: Sequence[Ref]) -> None:
        self.places, self.first, self.draws = planner.places, first, draws
        self.given = (*self.places.given, *(self.places.slots[ref] for ref in draws))
        self.plan = replayed(planner, plan, first)
        self.run = straight(self.plan, self.given, range(len(self.places)))
        self.noise = ReplayedNoise(planner)
        self.devices = list({kind.device for node in planner.graph for kind in node.outputs})
        self.draws_inside, self.known = False, 0

    def __call__(self, draws: Mapping[Ref, Tensor], begins: bool) -> dict[Ref, Any]:
        """All values; with `begins`, of a run with which the next ones are compared."""
        values = [*(self.first[i] for i in self.places.given), *(draws[ref] for ref in self.draws)]
        with same_random():
            found = self._run(values, begins)
            if not self.draws_inside and self._has_drawn():
                self.draws_inside = True
                self.run = straight(self.noise.through(self.plan), self.given, range(len(self.places)))
                found = self._run(values, begins)
                self.known -= not begins  # the runs before it went otherwise
        return self.places.named(found)

    def _run(self, values: Sequence[Tensor], begins: bool) -> Sequence[Any]:
        self._seed()
        if begins:
            self.noise.begin()
        return self.run(*(fresh(value, self.first[i].requires_grad) for i, value in zip(self.given, values)))

    def _seed(self) -> None:
        for device in self.devices:
            seed(device, 0)

    def _has_drawn(self) -> bool:
        """Whether random numbers have been drawn since the start of the run."""
        now = list(map(state_of, self.devices))
        self._seed()
        return not all(map(torch.equal, now, map(state_of, self.devices)))

    def learned(self) -> bool:
        """Whether more operations are known since the last time to use random numbers as their inputs say."""
        before, self.known = self.known, len(self.noise.uneven)
        return self.known > before


def _needs_rows(site: Site) -> bool:
    """Whether a site's estimator takes rows for independent: for messages, or as all take one value together."""
    return site.rule is not None and (site.rule.per_sample or site.rule.weighs)


def fresh(tensor: Tensor, wants: bool | None = None) -> Tensor:
    """A copy with a history of its own, that can be written into."""
    wants = tensor.requires_grad if wants is None else wants
    return tensor.detach().requires_grad_(wants).clone()
