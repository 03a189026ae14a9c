"""A rehearsal of the reverse pass, in which sites take the weights of one group of rows for another.

Along a chain, weights that one group of rows gives to another do not stay independent of it: what arrives at an early
site contains weights of later ones, which came from the other group. So the reverse pass is run twice. In the
rehearsal every group keeps to itself, its own weights included, and each site notes them; in the performance each
group takes those that another has noted, which depend on that group's rows alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from propc.errors import EstimatorError, message
from propc.runtime.autograd.tokens import applied


@dataclass(slots=True)
class Rehearsal:
    """That of one call: whether it is under way."""

    running: bool = False


class _Rehearsed(Function):
    """Costs; the reverse pass behind them is run once before what arrives goes on."""

    @staticmethod
    def forward(ctx: Any, rehearsal: Rehearsal, leaves: Sequence[Tensor], *costs: Tensor) -> tuple[Tensor, ...]:
        ctx.rehearsal, ctx.leaves = rehearsal, leaves
        ctx.save_for_backward(*costs)
        ctx.set_materialize_grads(False)
        return tuple(cost.view_as(cost) for cost in costs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        if torch.is_grad_enabled():
            finding = "a reverse pass that is rehearsed (weights='rehearsed') gives first derivatives only"
            fix = "For second derivatives (create_graph=True) use weights='crossfit', or 'rp' or 'lr'."
            raise EstimatorError(message(finding, fix))
        live = [(cost, grad) for cost, grad in zip(ctx.saved_tensors, grads) if grad is not None]
        ctx.rehearsal.running = True
        try:
            costs, arrived = zip(*live)
            torch.autograd.grad(costs, ctx.leaves, arrived, retain_graph=True, allow_unused=True)
        finally:
            ctx.rehearsal.running = False
        return (None, None, *grads)


_rehearsed = applied(_Rehearsed)


def rehearsed(rehearsal: Rehearsal, leaves: Sequence[Tensor], costs: Sequence[Tensor]) -> list[Tensor]:
    """Costs whose reverse pass is rehearsed.

    Args:
        rehearsal: of this call.
        leaves: where the reverse pass ends.
        costs: of any shapes; those without a gradient stay as they are.
    """
    wanted = [leaf for leaf in leaves if leaf.requires_grad]
    live = [i for i, cost in enumerate(costs) if cost.requires_grad]
    found = list(costs)
    if live and wanted and torch.is_grad_enabled():
        for i, cost in zip(live, _rehearsed(rehearsal, wanted, *(costs[i] for i in live))):
            found[i] = cost
    return found
