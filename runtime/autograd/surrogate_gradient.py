"""A value with the derivative of another: the gate of straight-through estimators."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from propc.errors import ErrorAt
from propc.runtime.autograd.tokens import applied


class _StandIn(Function):
    """(value, path) → value; a cotangent goes on to the path."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, path: Tensor, name: str, error: ErrorAt) -> Tensor:
        ctx.words = name, error
        ctx.mark_dirty(value)  # it is handed on, not copied
        return value

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        name, error = ctx.words
        if torch.is_grad_enabled():
            raise error(
                f"estimator {name!r} gives first derivatives only: its backward pass is a rule, and no derivative",
                "Leave out create_graph=True, or use 'lr', or 'gumbel_softmax' for those of the relaxed cost.",
            )
        return None, grad, None, None


_stand_in = applied(_StandIn)


def stand_in(value: Tensor, path: Tensor, name: str, error: ErrorAt) -> Tensor:
    """The value, which is used up; to autograd it is the path. First derivatives only.

    Args:
        value: without history, of the shape of `path`.
        path: what gets the cotangents.
        name: of the estimator, for the error.
        error: makes it.
    """
    out: Tensor = _stand_in(value, path, name, error)
    return out
