"""Normal sites in closed form: one gate instead of the autograd graphs of `rsample` and `log_prob`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from propc.runtime.autograd.tokens import applied, inlet


def standard_normal(like: Tensor, sample_shape: tuple[int, ...] = ()) -> Tensor:
    """Noise of the shape, dtype and device of a tensor: what `torch.randn` gives, a little sooner."""
    if sample_shape:
        return torch.randn(sample_shape + like.shape, dtype=like.dtype, device=like.device)
    if like.is_contiguous():  # else the noise would take the tensor's strides, and lie in another order
        return torch.randn_like(like)
    return torch.randn(like.shape, dtype=like.dtype, device=like.device)


def draw(loc: Tensor, scale: Tensor, sample_shape: tuple[int, ...] = ()) -> Tensor:
    """A draw without gradient: bit for bit what `rsample` gives."""
    with torch.no_grad():
        return standard_normal(loc, sample_shape).mul_(scale).add_(loc)


class NormalScore(Function):
    """(number of leading dimensions, x, loc, scale) → τ, zeros [*plates, batch].

    With z = (x − loc)/scale, message m at τ gives the cotangents m·z/scale on loc and m·(z² − 1)/scale
    on scale: m times the gradient of log p, summed over everything but the batch.
    """

    @staticmethod
    def forward(ctx: Any, lead: int, value: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(value, loc, scale)
        return inlet(value, lead)

    @staticmethod
    def backward(ctx: Any, sent: Tensor) -> tuple[Tensor | None, ...]:
        value, loc, scale = ctx.saved_tensors
        z = (value - loc) / scale
        score = rows(sent, z) / scale
        _, _, wants_loc, wants_scale = ctx.needs_input_grad
        return None, None, score * z if wants_loc else None, score * (z * z - 1) if wants_scale else None


score = applied(NormalScore)


def rows(sent: Tensor, like: Tensor) -> Tensor:
    """[*plates, batch] → [*plates, batch, 1, ...]."""
    return sent.view(*sent.shape, *(1,) * (like.dim() - sent.dim()))
