"""Total propagation at a Normal site in closed form: one gate for the draw, its message and their mixture."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from propc.runtime.autograd.normal import rows, standard_normal
from propc.runtime.autograd.run_once import differentiated_twice
from propc.runtime.autograd.tokens import applied, inlet
from propc.runtime.weighting.mix import at_target, mix
from propc.runtime.weighting.mixing import Mixing
from propc.runtime.weighting.moving_variance import remembered
from propc.util.torch_private import version


class NormalTotal(Function):
    """(loc, scale) → (x, τ), x = loc + ε·scale.

    With z = (x − loc)/scale, cotangent g on x and message m at τ, the pathwise cotangents are
    (g, g·z) and the likelihood-ratio ones m·(z, z² − 1)/scale; they are mixed by inverse variance.

    The noise is not kept: x and loc give it back, as a function of which it must be known anyway
    when the result is differentiated again. `places` are those of loc and scale among φ.
    """

    @staticmethod
    def forward(
        ctx: Any, mixing: Mixing, places: tuple[int, int], loc: Tensor, scale: Tensor, *at_target: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        value = standard_normal(loc).mul_(scale).add_(loc)
        ctx.mixing, ctx.places, ctx.past = mixing, places, remembered(mixing.state)
        ctx.save_for_backward(value, loc, scale, *at_target)
        return value, inlet(loc)

    @staticmethod
    def backward(ctx: Any, grad: Tensor, sent: Tensor) -> tuple[Any, ...]:
        if torch.is_grad_enabled() and differentiated_twice():
            raise ctx.mixing.error(
                "second derivatives of an inverse-variance weighting, in a part of the program that runs again",
                "Leave out propc.passes.Checkpoint(), or create_graph=True; or use 'rp' or 'lr' here.",
            )
        value, loc, scale, *saved = ctx.saved_tensors
        _, _, wants_loc, wants_scale, *others = ctx.needs_input_grad
        mixing, (i, j), past, none = ctx.mixing, ctx.places, ctx.past, (None,) * len(others)
        offset = value - loc
        if not wants_scale:
            target = at_target(mixing.norms, (i,), (saved[0], *saved[2:])) if saved else None
            (mixed,) = mix(mixing, [(grad, offset * _lifted(sent, scale))], target, past, ctx)
            return None, None, mixed, None, *none
        z = offset / scale
        score = rows(sent, z) / scale
        of_scale = grad * z, score * (z * z - 1)
        if not wants_loc:
            (mixed,) = mix(mixing, [of_scale], at_target(mixing.norms, (j,), saved[1:]), past, ctx)
            return None, None, None, mixed, *none
        both = [(grad, score * z), of_scale]
        return None, None, *mix(mixing, both, at_target(mixing.norms, (i, j), saved), past, ctx), *none


total = applied(NormalTotal)


def _lifted(sent: Tensor, scale: Tensor) -> Tensor:
    """Message over squared scale, [batch, ...].

    Sites that share both, as the steps of a rollout do, share the quotient: it is kept with the message,
    and is gone with it.
    """
    if torch.is_grad_enabled() or sent.is_inference():
        return rows(sent, scale) / (scale * scale)
    known, versions, made = sent.__dict__.get("_propc_lifted", (None, None, sent))
    if known is not scale or versions != (version(sent), version(scale)):
        made = rows(sent, scale) / scale / scale
        sent.__dict__["_propc_lifted"] = scale, (version(sent), version(scale)), made
    quotient: Tensor = made
    return quotient
