"""Tokens of antithetic draws: what arrives at the first half, less what arrives at the other."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from propc.errors import EstimatorError, message
from propc.runtime.autograd.tokens import applied


class _Opposed(Function):
    """[K, ...] → zeros [2K, ...]."""

    @staticmethod
    def forward(ctx: Any, site: str, tangent: Tensor) -> Tensor:
        ctx.site = site
        return tangent.new_zeros(()).expand(2 * tangent.shape[0], *tangent.shape[1:])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor]:
        if torch.is_grad_enabled():
            raise EstimatorError(
                message(
                    "antithetic pairs give first derivatives only",
                    "For second derivatives (create_graph=True) use 'lr', 'rloo' or 'enumerate' here.",
                    at=f"site {ctx.site!r}",
                )
            )
        first, second = grad.chunk(2)
        return None, first - second


_opposed = applied(_Opposed)


def opposed(site: str, tangent: Tensor) -> Tensor:
    """A token for each draw of K pairs, all firsts and then all seconds.

    Messages m make the cotangent m_first − m_second on `tangent`.

    Args:
        site: the site's name, for the error.
        tangent: [K, *lead].
    """
    made: Tensor = _opposed(site, tangent)
    return made
