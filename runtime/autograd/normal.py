"""Normal sites in closed form: one gate instead of the autograd graphs of `rsample` and `log_prob`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd import Function

from propc.runtime.autograd.run_once import differentiated_twice
from propc.runtime.autograd.tokens import applied, inlet
from propc.runtime.weighting.mix import at_target, mix
from propc.runtime.weighting.moving_variance import remembered
from propc.util.torch_private import version

if TYPE_CHECKING:
    from propc.propagators.sites.inverse_variance import InverseVariance
    from propc.propagators.sites.site_propagator import SiteContext


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
        score = _rows(sent, z) / scale
        _, _, wants_loc, wants_scale = ctx.needs_input_grad
        return None, None, score * z if wants_loc else None, score * (z * z - 1) if wants_scale else None


class NormalTotal(Function):
    """(loc, scale) → (x, τ), x = loc + ε·scale.

    With z = (x − loc)/scale, cotangent g on x and message m at τ, the pathwise cotangents are
    (g, g·z) and the likelihood-ratio ones m·(z, z² − 1)/scale; they are mixed by inverse variance.

    The noise is not kept: x and loc give it back, as a function of which it must be known anyway
    when the result is differentiated again.
    """

    @staticmethod
    def forward(
        ctx: Any, rule: InverseVariance, site: SiteContext, loc: Tensor, scale: Tensor, *at_target: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        value = standard_normal(loc).mul_(scale).add_(loc)
        ctx.rule, ctx.site, ctx.past = rule, site, remembered(site)
        ctx.save_for_backward(value, loc, scale, *at_target)
        return value, inlet(loc)

    @staticmethod
    def backward(ctx: Any, grad: Tensor, sent: Tensor) -> tuple[Any, ...]:
        if torch.is_grad_enabled() and differentiated_twice():
            raise ctx.site.error(
                "second derivatives of an inverse-variance weighting, in a part of the program that runs again",
                "Leave out propc.passes.Checkpoint(), or create_graph=True; or use 'rp' or 'lr' here.",
            )
        value, loc, scale, *saved = ctx.saved_tensors
        _, _, wants_loc, wants_scale, *others = ctx.needs_input_grad
        rule, site, past, none = ctx.rule, ctx.site, ctx.past, (None,) * len(others)
        i, j = site.normal
        offset = value - loc
        if not wants_scale:
            target = at_target(rule, (i,), (saved[0], *saved[2:])) if saved else None
            (mixed,) = mix(rule, site, [(grad, offset * _lifted(sent, scale))], target, past, ctx)
            return None, None, mixed, None, *none
        z = offset / scale
        score = _rows(sent, z) / scale
        of_scale = grad * z, score * (z * z - 1)
        if not wants_loc:
            (mixed,) = mix(rule, site, [of_scale], at_target(rule, (j,), saved[1:]), past, ctx)
            return None, None, None, mixed, *none
        both = [(grad, score * z), of_scale]
        return None, None, *mix(rule, site, both, at_target(rule, (i, j), saved), past, ctx), *none


score, total = applied(NormalScore), applied(NormalTotal)


def _rows(sent: Tensor, like: Tensor) -> Tensor:
    """[*plates, batch] → [*plates, batch, 1, ...]."""
    return sent.view(*sent.shape, *(1,) * (like.dim() - sent.dim()))


def _lifted(sent: Tensor, scale: Tensor) -> Tensor:
    """Message over squared scale, [batch, ...].

    Sites that share both, as the steps of a rollout do, share the quotient: it is kept with the message,
    and is gone with it.
    """
    if torch.is_grad_enabled() or sent.is_inference():
        return _rows(sent, scale) / (scale * scale)
    known, versions, made = sent.__dict__.get("_propc_lifted", (None, None, sent))
    if known is not scale or versions != (version(sent), version(scale)):
        made = _rows(sent, scale) / scale / scale
        sent.__dict__["_propc_lifted"] = scale, (version(sent), version(scale)), made
    quotient: Tensor = made
    return quotient
