"""Total propagation at a Normal site in closed form: one gate instead of two autograd graphs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd import Function

from propc.runtime.mixing import mix

if TYPE_CHECKING:
    from propc.propagators.base import SiteContext
    from propc.propagators.inverse_variance import InverseVariance


class NormalTotal(Function):
    """(loc, scale) → (x, τ), x = loc + ε·scale.

    With z = (x − loc)/scale, cotangent g on x and message m at τ, the pathwise cotangents are
    (g, g·z) and the likelihood-ratio ones m·(z, z² − 1)/scale; they are mixed by inverse variance.
    """

    @staticmethod
    def forward(ctx: Any, rule: InverseVariance, site: SiteContext, loc: Tensor, scale: Tensor,
                *tangents: Tensor | None) -> tuple[Tensor, Tensor]:
        noise = torch.randn(loc.shape, dtype=loc.dtype, device=loc.device)
        value = loc + noise * scale
        inlet = loc.new_zeros(loc.shape[0])
        ctx.rule, ctx.site = rule, site
        ctx.save_for_backward(noise, value, loc, scale, *tangents)
        return value, inlet

    @staticmethod
    def backward(ctx: Any, grad: Tensor, sent: Tensor) -> tuple[Any, ...]:
        noise, value, loc, scale, *tangents = ctx.saved_tensors
        # When the result is differentiated again, z must be a function of x and φ.
        z = (value - loc) / scale if torch.is_grad_enabled() else noise
        score = sent.reshape(sent.shape + (1,) * (z.dim() - 1)) / scale
        wants = ctx.needs_input_grad[2:4]
        pathwise = [g for g, wanted in zip((grad, grad * z if wants[1] else grad), wants) if wanted]
        ratio = [g for g, wanted in zip((score * z, score * (z * z - 1) if wants[1] else score), wants) if wanted]
        towards = [t for t, wanted in zip(tangents, wants) if wanted]
        mixed = iter(mix(ctx.rule, ctx.site, [pathwise, ratio], towards))
        return (None, None, *(next(mixed) if wanted else None for wanted in wants), None, None)
