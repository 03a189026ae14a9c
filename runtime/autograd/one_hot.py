"""One-hot sites in closed form: one gate instead of the autograd graph of `log_prob`."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.autograd import Function

from propc.runtime.autograd.tokens import applied, inlet


class ClassScore(Function):
    """(number of leading dimensions, x one-hot, normalized logits) → τ, zeros [*plates, batch].

    log p(x) = Σ x·logits, so message m at τ gives the cotangent m·x on the logits; also where one of them is −∞.
    """

    @staticmethod
    def forward(ctx: Any, lead: int, value: Tensor, logits: Tensor) -> Tensor:
        ctx.save_for_backward(value)
        return inlet(value, lead)

    @staticmethod
    def backward(ctx: Any, sent: Tensor) -> tuple[Tensor | None, ...]:
        (value,) = ctx.saved_tensors
        return None, None, sent.view(*sent.shape, *(1,) * (value.dim() - sent.dim())) * value


score = applied(ClassScore)
