"""Costs in plates: weighted means, bounds, and the dimensions along which a baseline sees samples."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from propc.errors import PropcValueError, message
from propc.ir.graph import PropagationGraph
from propc.ir.named_dims import Names, aligned
from propc.ir.nodes.reduce import Reduce
from propc.ir.records import LOG_MEAN_EXP, Route
from propc.ir.rules import CostBaseline
from propc.types import BATCH

Center = Callable[..., Tensor]


def reduced(graph: PropagationGraph, node: Reduce) -> Callable[..., Tensor]:
    """What takes a value (and the weights of plates) to its mean, or its bound, over the plates of a node."""
    if node.how == LOG_MEAN_EXP:
        return log_mean_exp(graph, node, node.over)
    (over,) = node.over
    dim = graph.plates_of(node.inputs[0]).index(over)
    if node.how == "first":
        return lambda value: value.select(dim, 0)
    if len(node.inputs) == 1:
        return lambda value: value.mean(dim)
    weighing = _weighing(graph, node)
    return lambda value, *weights: (value * weighing(weights)[0]).sum(dim)


def log_mean_exp(graph: PropagationGraph, node: Reduce, over: Names) -> Callable[..., Tensor]:
    """What takes log weights in plates (and the weights of plates) to log Σ p·w over those of some plates."""
    plates = graph.plates_of(node.inputs[0])
    dims = [i for i, name in enumerate(plates) if name in over]
    equal = math.prod(graph.plate(name).size for name in plates if name in over and not graph.plate(name).weighted)
    weighing = _weighing(graph, node)
    kept = [i for i, name in enumerate(name for name in plates if graph.plate(name).weighted) if name in over]

    def bound(value: Tensor, *weights: Tensor) -> Tensor:
        if not dims:
            return value
        largest = value.detach().amax(dims, keepdim=True)
        shift = torch.where(torch.isfinite(largest), largest, 0.0)
        total = torch.exp(value - shift)
        each = weighing(weights)
        for i in kept:
            total = total * each[i]
        return torch.log(total.sum(dims) / equal) + shift.squeeze(dims)

    return bound


def _weighing(graph: PropagationGraph, node: Reduce) -> Callable[[Sequence[Tensor]], list[Tensor]]:
    """What brings the weights of plates to the dimensions of the values that a node reduces."""
    want = graph.plates_of(node.inputs[0])
    have = [graph.plates_of(ref) for ref in node.inputs[1:]]
    tails = [len(node.shape) - len(graph[ref.node].outputs[ref.port].shape) for ref in node.inputs[1:]]

    def fitted(weights: Sequence[Tensor]) -> list[Tensor]:
        return [aligned(w, own, want)[(...,) + (None,) * tail] for w, own, tail in zip(weights, have, tails)]

    return fitted


def centering(graph: PropagationGraph, route: Route, baseline: CostBaseline, state: nn.Module | None) -> Center:
    """Takes a cost to cost minus baseline, along some of its dimensions: [*plates, batch] → the same."""
    dims, over = graph.lead(graph[route.source]), route.over
    if dims[:1] in ((), (BATCH,), over):
        if baseline.traceable:  # one of ours, which gives what it should
            return lambda cost, *_: baseline.center(cost, None)
        return lambda cost, *_: _centered(graph, route, baseline, cost, state)
    rows = [i for i, name in enumerate(dims) if name in over]
    order = [*rows, *(i for i in range(len(dims)) if i not in rows)]
    back = sorted(range(len(dims)), key=order.__getitem__)

    def center(cost: Tensor, *_: Tensor) -> Tensor:
        turned = cost.permute(order)
        shape, kept = turned.shape, turned.shape[len(rows) :]
        flat = turned.reshape(math.prod(shape[: len(rows)]), *kept)
        return _centered(graph, route, baseline, flat, state).reshape(shape).permute(back)

    return center


def _centered(
    graph: PropagationGraph, route: Route, baseline: CostBaseline, cost: Tensor, state: nn.Module | None
) -> Tensor:
    """A cost minus its baseline, which may be a user's."""
    try:
        return baseline.centered(cost, state)
    except PropcValueError as error:
        where = graph[route.source].where
        raise PropcValueError(message(str(error).rstrip("."), at=f"cost {route.source!r}", where=where)) from None


def bounding(graph: PropagationGraph, route: Route, baseline: CostBaseline, state: nn.Module | None) -> Center:
    """Takes a bound and what it was made of to bound minus baseline, for each sample of the sites of a route.

    The samples of a site's own plate take turns to be left out, each with all that was drawn behind it.
    """
    node, plates = graph[route.source], graph.meeting(route)
    assert isinstance(node, Reduce)
    whole = (*graph.sizes(plates), *node.shape)
    if route.over == (BATCH,):
        return lambda bound, *_: baseline.centered(bound, state).expand(whole)
    near = log_mean_exp(graph, node, tuple(name for name in node.over if name not in route.over))

    def center(bound: Tensor, *given: Tensor) -> Tensor:
        return aligned(baseline.center_bound(bound, near(*given), state), route.over, plates).expand(whole)

    return center
