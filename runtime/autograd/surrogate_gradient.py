"""A value with the derivative of another: the gate of straight-through estimators."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd import Function

from propc.runtime.autograd.tokens import applied

if TYPE_CHECKING:
    from propc.propagators.sites.site_propagator import SiteContext


class _StandIn(Function):
    """(value, path) → value; a cotangent goes on to the path."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, path: Tensor, name: str, site: SiteContext) -> Tensor:
        ctx.words = name, site
        ctx.mark_dirty(value)  # it is handed on, not copied
        return value

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        name, site = ctx.words
        if torch.is_grad_enabled():
            raise site.error(
                f"estimator {name!r} gives first derivatives only: its backward pass is a rule, and no derivative",
                "Leave out create_graph=True, or use 'lr', or 'gumbel_softmax' for those of the relaxed cost.",
            )
        return None, grad, None, None


_stand_in = applied(_StandIn)


def stand_in(value: Tensor, path: Tensor, name: str, site: SiteContext) -> Tensor:
    """The value, which is used up; to autograd it is the path. First derivatives only.

    Args:
        value: without history, of the shape of `path`.
        path: what gets the cotangents.
        name: of the estimator, for the error.
        site: where.
    """
    out: Tensor = _stand_in(value, path, name, site)
    return out
