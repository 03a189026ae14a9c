"""Costs beside what they would be on alternatives of a site, which is sent the difference."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from propc.ir.nodes.site import Site
from propc.runtime.autograd.tokens import applied


class _WeighAlternatives(Function):
    """(cost, difference, τ) → cost; sends weight · difference to τ.

    The alternatives were run without gradient, so that the difference is a number: there are first derivatives only.
    """

    @staticmethod
    def forward(ctx: Any, cost: Tensor, difference: Tensor, token: Tensor, site: Site) -> Tensor:
        ctx.save_for_backward(difference)
        ctx.site = site
        return cost.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise ctx.site.error(
                f"estimator {ctx.site.estimator!r} runs alternatives without gradient, and gives first derivatives "
                "only",
                "Leave out create_graph=True, or use 'lr' or 'enumerate' at the site.",
            )
        (difference,) = ctx.saved_tensors
        return grad, None, grad * difference, None


_compare = applied(_WeighAlternatives)


def compared(cost: Tensor, alternatives: Tensor, token: Tensor, site: Site) -> Tensor:
    """The cost, sending weight · (cost of each alternative − cost) to the token of a site.

    Args:
        cost: [*plates, batch].
        alternatives: its value on each alternative, [size, *plates, batch].
        token: zeros of the same shape.
        site: whose alternatives they are.
    """
    with torch.no_grad():
        difference = alternatives - cost
    out: Tensor = _compare(cost, difference, token, site)
    return out
