"""How a cost sends its messages: to each route the cost minus the route's baseline."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from propc.ir.graph import PropagationGraph
from propc.ir.nodes.cost import Cost
from propc.ir.nodes.reduce import Reduce
from propc.ir.records import LOG_MEAN_EXP, Route
from propc.ir.rules import CostBaseline
from propc.propagators.baselines import Custom, Weight
from propc.runtime.autograd.run_once import once_of
from propc.runtime.autograd.tokens import attach
from propc.runtime.plan.token_reads import Inlet, Inlets
from propc.runtime.plates.reduce import Center, bounding, centering
from propc.util.estimator_state import EstimatorState


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


def sender(
    graph: PropagationGraph, node: Cost | Reduce, routes: Sequence[Route], state: EstimatorState, inlets: Inlets
) -> Sender:
    """What makes a cost send along its routes."""
    center = bounding if isinstance(node, Reduce) and node.how == LOG_MEAN_EXP else centering
    centers: list[Center | None] = []
    for (baseline, kept), route in zip(baselines(node, routes, state), routes):
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
