"""Small autograd functions through which messages travel.

A site gives a token τ, zeros [batch]. A cost L becomes L·exp(Στ) over the tokens routed
to it: the value stays L, and the cotangent that autograd delivers at τ is the sum of the
cost messages, weighted as the user weighted the returned costs. So routing, summing and
ordering are done by the engine, in one call. All gates can be differentiated again, which
makes higher derivatives unbiased too (Foerster et al. 2018, DiCE; the exponential is over
tokens here, not over log-probabilities).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from propc.errors import PropcValueError, message


def applied(gate: type[Function]) -> Callable[..., Any]:
    """`gate.apply` without its preparations for the transforms of torch.func, which no gate here supports.

    They take as long as a small operation. Torch refuses such a transform all the same.
    """
    apply: Callable[..., Any] = super(Function, gate).apply  # type: ignore[misc]
    return apply


def inlet(like: Tensor, lead: int = 1) -> Tensor:
    """A token for a gate to return: zeros of the leading dimensions, dtype and device of a tensor."""
    if type(like) is Tensor and like.is_cpu:
        return _zeros(like.shape[:lead], like.dtype).detach()
    return like.new_zeros(()).expand(like.shape[:lead])


@lru_cache
def _zeros(shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """One zero in a shape; never written into."""
    with torch.inference_mode(False):
        return torch.zeros((), dtype=dtype, device="cpu").expand(shape)


class _SumOfTokens(Function):
    """The sum of tokens: zeros, sent back to every member."""

    @staticmethod
    def forward(ctx: Any, *tokens: Tensor) -> Tensor:
        ctx.count = len(tokens)
        return inlet(tokens[0], tokens[0].dim())

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        members: int = ctx.count
        return (grad,) * members


class _AttachTokens(Function):
    """A cost with tokens: value L; sends weight · (L − b) to each token, or the weight alone.

    Equals L·exp(ΣT) − Σ_g b_g·(exp(T_g) − 1) + Σω over channels g with baselines b_g, and channels ω of the weight. The
    first backward needs no exponential, since T = 0; a backward that is differentiated again has it. A channel may have
    tokens for each sample that the cost was made of, with a baseline each; they stand in leading dimensions.
    """

    @staticmethod
    def forward(ctx: Any, cost: Tensor, centered: tuple[Tensor | None, ...], *tokens: Tensor) -> Tensor:
        ctx.save_for_backward(cost, *centered, *tokens)
        ctx.count = len(tokens)
        return cost.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        cost, *rest = ctx.saved_tensors
        centered, tokens = rest[: ctx.count], rest[ctx.count :]
        channels = list(zip(centered, tokens))
        if not torch.is_grad_enabled():
            return (grad, None, *(grad.expand_as(t) if c is None else grad * c for c, t in channels))
        scored = [t.sum_to_size(cost.shape) for c, t in channels if c is not None]
        every = torch.exp(torch.stack(scored).sum(0)) if scored else torch.ones_like(cost)
        sent = [
            grad.expand_as(t) if c is None else grad * (cost * every - (cost.detach() - c) * torch.exp(t))
            for c, t in channels
        ]
        return (grad * every, None, *sent)


class _Guard(Function):
    """A returned value that is no cost: a gradient into it would be silently wrong."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, path: str, sites: str, where: str) -> Tensor:
        ctx.words = path, sites, where
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        path, sites, where = ctx.words
        raise PropcValueError(
            message(
                f"a gradient arrived at the returned value {path or 'of the function'}, which is no cost: it depends "
                f"on {sites}, whose estimator needs the costs themselves",
                "Compute the cost, shape [batch], inside the compiled function, or use estimator='rp'.",
                where=where,
            )
        )


_join, _attach = applied(_SumOfTokens), applied(_AttachTokens)


def token(logp: Tensor) -> Tensor:
    """A message inlet: zeros [batch]; what arrives at it becomes the cotangent on `logp`."""
    return logp - logp.detach()


def join(tokens: list[Tensor]) -> Tensor:
    """One token for several."""
    out: Tensor = tokens[0] if len(tokens) == 1 else _join(*tokens)
    return out


def attach(cost: Tensor, centered: tuple[Tensor | None, ...], tokens: Sequence[Tensor]) -> Tensor:
    """The cost, sending to each token its weight times the cost minus the token's baseline, or the weight alone.

    Args:
        cost: [*plates, batch].
        centered: cost minus baseline, one for each token, of its shape; None for the weight alone.
        tokens: zeros of the cost's shape, perhaps with further plates in front.
    """
    out: Tensor = _attach(cost, centered, *tokens)
    return out


def guard(value: Tensor, path: str, sites: str, where: str) -> Tensor:
    """The value; a gradient into it is an error."""
    out: Tensor = _Guard.apply(value, path, sites, where)
    return out
