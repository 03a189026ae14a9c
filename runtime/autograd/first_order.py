"""Tokens that say so where a second derivative would be wrong."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from propc.errors import ErrorAt
from propc.runtime.autograd.tokens import applied


class _FirstOrder(Function):
    """token → token."""

    @staticmethod
    def forward(ctx: Any, token: Tensor, law: str, name: str, error: ErrorAt) -> Tensor:
        ctx.words = law, name, error
        return token.view_as(token)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        law, name, error = ctx.words
        if torch.is_grad_enabled():
            raise error(
                f"the log-probability of {law} has a kink, which second derivatives of {name!r} do not see: they would "
                "be wrong",
                "Leave out create_graph=True, or use 'rp' here, where the costs have a path to the draw.",
            )
        return grad, None, None, None


_first_order = applied(_FirstOrder)


def first_order(token: Tensor, law: str, name: str, error: ErrorAt) -> Tensor:
    """The token; a reverse pass that is to be differentiated again is an error.

    Args:
        law: the distribution, in words.
        name: of the estimator.
        error: makes it.
    """
    out: Tensor = _first_order(token, law, name, error)
    return out
