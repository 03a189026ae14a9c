"""The gate of a resample node: rows drawn anew from the Gaussian fitted to a batch.

With mean μ, Bessel covariance Σ (shrunk, plus a jitter) and noise ε, x′ = μ + chol(Σ) ε. Backward turns the
cotangents on x′ into c_μ and c_Σ, the gradients of the summed costs in μ and Σ, and sends

    x_i:  c_μ/B + 2/(B−1) c_Σ (x_i − μ), the exact pathwise cotangent through μ and Σ;
    τ_i:  g_i/B, g_i = c_μᵀ(x_i − μ) + ⟨c_Σ, (x_i − μ)(x_i − μ)ᵀ − Σ_b⟩, the shaped message; Σ_b has 1/B for 1/(B−1).

g/B is the derivative of μ and Σ in the logarithms of row weights, so its mean over the batch is zero
without a baseline. It holds no value of a cost, only how the costs depend on the two moments.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from propc.errors import EstimatorError, message
from propc.ir.nodes.resample import Resample


def refit(node: Resample, values: Sequence[Tensor], tokens: Sequence[Tensor], check: bool) -> list[Tensor]:
    """Draws of the Gaussian fitted to `values` jointly, with their shapes and dtypes.

    Args:
        node: the resample node, for its shrinkage and jitter.
        values: what is refitted, each [batch, ...]; event dimensions are flattened and joined.
        tokens: inlets of the sites before the node, [batch]; they receive the shaped messages.
        check: look whether the covariance is positive definite, which waits for the device. Without it a
            covariance that is not makes all draws NaN.

    Raises:
        EstimatorError: the covariance is not positive definite.
    """
    rows = values[0].shape[0]
    flat = [value.reshape(rows, -1) for value in values]
    joined = flat[0] if len(flat) == 1 else torch.cat(flat, 1)
    if joined.dtype.itemsize < 4:  # a covariance needs more digits
        joined = joined.float()
    with torch.autocast(joined.device.type, enabled=False):
        drawn = _Refit.apply(node, check, joined, torch.randn_like(joined), *tokens)
    parts = drawn.split([part.shape[1] for part in flat], 1) if len(flat) > 1 else [drawn]
    return [part.reshape(value.shape).to(value.dtype) for part, value in zip(parts, values)]


class _Refit(Function):
    """(x, ε, tokens) → x′, [batch, width]."""

    @staticmethod
    def forward(ctx: Any, node: Resample, check: bool, x: Tensor, noise: Tensor, *tokens: Tensor) -> Tensor:
        mean = x.mean(0)
        deviation = x - mean
        covariance = _shrunk(node, deviation.T @ deviation / (len(x) - 1))
        factor, info = torch.linalg.cholesky_ex(covariance)
        if not check:
            factor = torch.where(info == 0, factor, math.nan)
        elif info.item():
            raise _not_positive(node, x, covariance)
        ctx.node = node
        ctx.save_for_backward(x, noise, deviation, factor, *tokens)
        return torch.addmm(mean, noise, factor.T)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, noise, deviation, factor, *tokens = ctx.saved_tensors
        if torch.is_grad_enabled():
            return (None, None, *_again(ctx, grad, x, noise, tokens))
        rows = len(x)
        of_mean = grad.sum(0)
        of_covariance = _through_shrinkage(ctx.node, _through_cholesky(factor, grad.T @ noise))
        second = deviation @ of_covariance
        path = torch.add(of_mean / rows, second, alpha=2 / (rows - 1)) if ctx.needs_input_grad[2] else None
        if not tokens:
            return None, None, path, None
        shaped = torch.mv(deviation, of_mean) + (second * deviation).sum(1)
        shaped = (shaped - shaped.mean()) / rows
        return (None, None, path, None, *[shaped] * len(tokens))


def _shrunk(node: Resample, covariance: Tensor) -> Tensor:
    """(1 − s)·Σ + s·tr(Σ)/D·I, plus the jitter."""
    extra: Tensor | float = node.jitter
    if node.shrinkage:
        extra = covariance.diagonal().mean() * node.shrinkage + node.jitter
        covariance = covariance * (1 - node.shrinkage)
    return covariance + torch.diag(covariance.new_ones(len(covariance)) * extra)


def _through_shrinkage(node: Resample, grad: Tensor) -> Tensor:
    """The gradient in Σ from that in the shrunk Σ."""
    if not node.shrinkage:
        return grad
    mean = grad.diagonal().mean() * node.shrinkage
    return grad * (1 - node.shrinkage) + torch.diag(grad.new_ones(len(grad)) * mean)


def _through_cholesky(factor: Tensor, grad: Tensor) -> Tensor:
    """The symmetric gradient in Σ from that in L, Σ = LLᵀ (Murray 2016, arXiv:1602.07527)."""
    inner = torch.tril(factor.T @ grad)
    inner.diagonal().mul_(0.5)
    left = torch.linalg.solve_triangular(factor.T, inner, upper=True)
    solved = torch.linalg.solve_triangular(factor, left, upper=False, left=False)
    symmetric: Tensor = (solved + solved.T) * 0.5
    return symmetric


def _again(ctx: Any, grad: Tensor, x: Tensor, noise: Tensor, tokens: Sequence[Tensor]) -> list[Tensor | None]:
    """The same cotangents, to be differentiated again: the forward anew, with tokens as logarithms of row weights."""
    wanted = [t for t, needed in zip((x, noise, *tokens), ctx.needs_input_grad[2:]) if needed]
    with torch.enable_grad():
        drawn = _by_weights(ctx.node, x, noise, tokens)
        grads = iter(torch.autograd.grad(drawn, wanted, grad, create_graph=True))
    return [next(grads) if needed else None for needed in ctx.needs_input_grad[2:]]


def _by_weights(node: Resample, x: Tensor, noise: Tensor, tokens: Sequence[Tensor]) -> Tensor:
    """x′ of moments under row weights softmax(Στ), 1/B each as τ = 0."""
    rows = len(x)
    logits = torch.stack([x.new_zeros(rows), *tokens]).sum(0)
    weights = torch.softmax(logits, 0).unsqueeze(1)
    mean: Tensor = (weights * x).sum(0)
    deviation, plain = x - mean, x - x.mean(0)
    weighted = deviation.T @ (weights * deviation)
    covariance = weighted + plain.T @ plain / (rows * (rows - 1))  # Bessel's part, which shaping leaves out
    factor, _ = torch.linalg.cholesky_ex(_shrunk(node, covariance))
    drawn: Tensor = mean + noise @ factor.T
    return drawn


def _not_positive(node: Resample, x: Tensor, covariance: Tensor) -> EstimatorError:
    if bool(torch.isfinite(covariance).all()):
        finding = f"the covariance of its {len(x)} rows is not positive definite"
        fix = "A dimension is constant or repeats others: refit fewer values with at=, or set shrinkage= or jitter=."
    else:
        finding = f"the covariance of its {len(x)} rows is not finite"
        fix = "Look for NaN, infinity or values that overflow before it."
    return EstimatorError(message(finding, fix, at=f"resample node {node.name!r}", where=node.where))
