"""Costs, and their means over plates: each sends to each of its routes the cost minus the route's baseline."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from propc.ir.graph import PropagationGraph
from propc.ir.nodes.cost import Cost
from propc.ir.nodes.reduce import Reduce
from propc.ir.nodes.site import Site
from propc.ir.records import LOG_MEAN_EXP, Route
from propc.ir.rules import CostBaseline
from propc.propagators.baselines import Custom, Weight
from propc.runtime.autograd.run_once import once_of
from propc.runtime.autograd.tokens import attach
from propc.runtime.lowering.lowering import Lowering, lowers
from propc.runtime.lowering.planner import Planner
from propc.runtime.lowering.token_reads import Inlet
from propc.runtime.plan.step import Step, Values, same
from propc.runtime.plates.reduce import Center, bounding, centering, reduced
from propc.util.estimator_state import EstimatorState


class _Sends(Lowering):
    """What a cost and its mean have in common."""

    ends_stage: ClassVar[bool] = True

    def obstacle(self, planner: Planner, node: Cost | Reduce) -> str:
        routes = planner.routes.get(node.name, [])
        if any(route.baseline is not None and not route.baseline.traceable for route in routes):
            return "a baseline that keeps something, or is the user's own"
        return ""


@lowers(Cost)
class CostLowering(_Sends):
    """On other draws the cost alone."""

    def step(self, planner: Planner, node: Cost) -> Step:
        sending = sender(planner, node)
        if sending is None:
            return planner.step(node, same)
        send = sending.send
        return planner.step(node, lambda cost, *tokens: (send(cost, tokens),), *sending.reads)

    def replayed(self, planner: Planner, step: Step, first: Values) -> Step:
        return planner.step(step.node, same)

    def key(self, planner: Planner, node: Cost) -> Hashable:
        if node.plates or node.dims:
            return id(node)
        graph, routes = planner.graph, planner.routes.get(node.name, [])
        return "cost", tuple((route.baseline, route.over, route.along, _leads(graph, route)) for route in routes)


@lowers(Reduce)
class ReduceLowering(_Sends):
    """On other draws the mean alone."""

    def step(self, planner: Planner, node: Reduce) -> Step:
        mean, count = reduced(planner.graph, node), len(node.inputs)
        sending = sender(planner, node)
        if sending is None:
            return planner.step(node, lambda *given: (mean(*given),))
        send = sending.send

        def run(*given: Tensor) -> tuple[Tensor]:
            return (send(mean(*given[:count]), given[count:], given[:count]),)

        return planner.step(node, run, *sending.reads)

    def replayed(self, planner: Planner, step: Step, first: Values) -> Step:
        assert isinstance(step.node, Reduce)
        mean = reduced(planner.graph, step.node)
        return planner.step(step.node, lambda *given: (mean(*given),))


def _leads(graph: PropagationGraph, route: Route) -> tuple[object, ...]:
    """The leading dimensions of the tokens that a cost reads; joins have none of their own."""
    sites = (graph.nodes.get(token.site) for token in route.through)
    return tuple(graph.lead(site) if isinstance(site, Site) else None for site in sites)


@dataclass(frozen=True, slots=True)
class Sender:
    """What makes a cost send its messages, in the plates where it stands.

    Attributes:
        centers: for each route what takes its baseline off the cost; None where the weight alone is sent.
        inlets: for each route how its token is read.
    """

    centers: Sequence[Center | None]
    inlets: Sequence[Inlet]

    @property
    def reads(self) -> tuple[int, ...]:
        """The places of its tokens."""
        return tuple(inlet.read for inlet in self.inlets)

    def send(self, cost: Tensor, tokens: Sequence[Tensor], given: Sequence[Tensor] = ()) -> Tensor:
        """The cost, sending to its tokens.

        Args:
            cost: [*plates, batch].
            tokens: in the order of `reads`.
            given: what the cost was reduced from.
        """
        fixed, beside = cost.detach(), [each.detach() for each in given]
        centered = tuple([None if center is None else center(fixed, *beside) for center in self.centers])
        return attach(cost, centered, [inlet.fit(token) for inlet, token in zip(self.inlets, tokens)])


def sender(planner: Planner, node: Cost | Reduce) -> Sender | None:
    """What makes a cost send along its routes; None if it has none."""
    routes, graph, inlets = planner.routes.get(node.name), planner.graph, planner.inlets
    if not routes:
        return None
    center = bounding if isinstance(node, Reduce) and node.how == LOG_MEAN_EXP else centering
    centers: list[Center | None] = []
    for (baseline, kept), route in zip(baselines(node, routes, planner.state), routes):
        if isinstance(baseline, Weight):
            centers.append(None)
            continue
        each: Center = center(graph, route, baseline, kept)
        each = each if baseline.traceable else torch.no_grad()(each)
        centers.append(once_of(each) if baseline.stateful or isinstance(baseline, Custom) else each)
    return Sender(centers, [inlets.joined(route.through, graph.meeting(route), node, route.along) for route in routes])


def baselines(
    node: Cost | Reduce, routes: Sequence[Route], state: EstimatorState
) -> list[tuple[CostBaseline, nn.Module | None]]:
    """The baseline of each of a cost's routes, with what it keeps."""
    found: list[tuple[CostBaseline, nn.Module | None]] = []
    for key, route in zip(_keys(node, routes), routes):
        assert route.baseline is not None
        make = route.baseline.state
        found.append((route.baseline, state.part(key, make) if route.baseline.stateful else None))
    return found


def _keys(cost: Cost | Reduce, routes: Sequence[Route]) -> list[str]:
    """Names for what the baselines of a cost's routes keep; numbered where several are of one kind."""
    kinds = [type(route.baseline).__name__ for route in routes]
    return [f"{cost.name}:{kind}{kinds[:i].count(kind) or ''}" for i, kind in enumerate(kinds)]
