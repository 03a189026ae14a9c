"""Normal sites in closed form: one gate instead of the autograd graphs of `rsample` and `log_prob`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd import Function

from propc.runtime.mixing import mix

if TYPE_CHECKING:
    from propc.propagators.inverse_variance import InverseVariance
    from propc.propagators.site import SiteContext


class NormalScore(Function):
    """(x, loc, scale) → τ, zeros [batch].

    With z = (x − loc)/scale, message m at τ gives the cotangents m·z/scale on loc and m·(z² − 1)/scale
    on scale: m times the gradient of log p, summed over everything but the batch.
    """

    @staticmethod
    def forward(ctx: Any, value: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(value, loc, scale)
        return loc.new_zeros(()).expand(loc.shape[0])

    @staticmethod
    def backward(ctx: Any, sent: Tensor) -> tuple[Tensor | None, ...]:
        value, loc, scale = ctx.saved_tensors
        z = (value - loc) / scale
        score = sent.view(-1, *(1,) * (z.dim() - 1)) / scale
        _, wants_loc, wants_scale = ctx.needs_input_grad
        return None, score * z if wants_loc else None, score * (z * z - 1) if wants_scale else None


class NormalTotal(Function):
    """(loc, scale) → (x, τ), x = loc + ε·scale.

    With z = (x − loc)/scale, cotangent g on x and message m at τ, the pathwise cotangents are
    (g, g·z) and the likelihood-ratio ones m·(z, z² − 1)/scale; they are mixed by inverse variance.

    The noise is not kept: x and loc give it back, as a function of which it must be known anyway
    when the result is differentiated again.
    """

    @staticmethod
    def forward(
        ctx: Any, rule: InverseVariance, site: SiteContext, loc: Tensor, scale: Tensor, *tangents: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        value = torch.randn(loc.shape, dtype=loc.dtype, device=loc.device).mul_(scale).add_(loc)
        ctx.rule, ctx.site = rule, site
        ctx.save_for_backward(value, loc, scale, *tangents)
        return value, loc.new_zeros(()).expand(loc.shape[0])

    @staticmethod
    def backward(ctx: Any, grad: Tensor, sent: Tensor) -> tuple[Any, ...]:
        value, loc, scale, *tangents = ctx.saved_tensors
        wants = ctx.needs_input_grad[2:4]
        z = (value - loc) / scale
        score = sent.view(-1, *(1,) * (z.dim() - 1)) / scale
        grads, towards = [], []
        if wants[0]:
            grads.append((grad, score * z))
            towards.append(tangents[0])
        if wants[1]:
            grads.append((grad * z, score * (z * z - 1)))
            towards.append(tangents[1])
        mixed = iter(mix(ctx.rule, ctx.site, grads, towards))
        return (None, None, *(next(mixed) if wanted else None for wanted in wants), None, None)
