"""Costs in plates: weighted means, and the dimensions along which a baseline sees samples."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor, nn

from propc.graph import PropagationGraph
from propc.ir import BATCH, Node, Reduce
from propc.propagators import Baseline
from propc.runtime.aligning import Names, aligned

Center = Callable[[Tensor], Tensor]


def reduced(graph: PropagationGraph, node: Reduce) -> Callable[..., Tensor]:
    """What takes a value (and the weights of a plate) to its mean over that plate."""
    dim = graph.plates_of(node.inputs[0]).index(node.over)
    if node.how == "first":
        return lambda value: value.select(dim, 0)
    if len(node.inputs) == 1:
        return lambda value: value.mean(dim)
    value_plates, have = (graph.plates_of(ref) for ref in node.inputs)
    weights = node.inputs[1]
    own = len(graph[weights.node].outputs[weights.port].shape)
    tail = len(node.shape) - own

    def mean(value: Tensor, weights: Tensor) -> Tensor:
        weights = aligned(weights, have, value_plates)
        return (value * weights[(...,) + (None,) * tail]).sum(dim)

    return mean


def centering(node: Node, over: Names, baseline: Baseline, state: nn.Module | None) -> Center:
    """A baseline along some of a cost's dimensions, [*plates, batch] → the same."""
    dims = [*node.plates, BATCH] if node.shape else list(node.plates)
    if not node.plates or over == tuple(dims[:1]):
        return lambda cost: baseline.center(cost, state)
    rows = [i for i, name in enumerate(dims) if name in over]
    order = [*rows, *(i for i in range(len(dims)) if i not in rows)]
    back = sorted(range(len(dims)), key=order.__getitem__)

    def center(cost: Tensor) -> Tensor:
        turned = cost.permute(order)
        shape, kept = turned.shape, turned.shape[len(rows) :]
        flat = turned.reshape(math.prod(shape[: len(rows)]), *kept)
        return baseline.center(flat, state).reshape(shape).permute(back)

    return center
