"""Inverse-variance weights, and the gate that mixes several cotangents on φ into one.

With per-sample cotangents g_c of part c, the weight of c is 1/V_c over the sum of all,
V_c being the sum over samples and coordinates of squared deviations from the mean
(Parmas et al. 2018; for two parts this is total propagation).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

if TYPE_CHECKING:
    from propc.propagators.base import SiteContext
    from propc.propagators.inverse_variance import InverseVariance

_TINY = 1e-290  # a variance of zero still has a finite logarithm; two zeros give equal weights


@dataclass(frozen=True)
class Weighting:
    """Which variance decides, and over which samples.

    Attributes:
        target: name of the parameter, argument or node where the variance is taken; None is φ itself.
        per_coordinate: one weight for each coordinate of φ instead of one for the site.
        weights: ``same`` batch, ``past`` batches (moving moments), or ``crossfit``: the weights of
            every second sample come from the other samples.
        k_interval: weights are computed at every k_interval-th site and reused between.
        decay: of the moving moments.
    """

    target: str | None = None
    per_coordinate: bool = False
    weights: str = "crossfit"
    k_interval: int = 1
    decay: float = 0.9


class PastVariances(nn.Module):
    """Moving variances of the parts' cotangents; empty until the first backward pass."""

    variances: Tensor | None

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("variances", None)

    def update(self, variances: Tensor, decay: float) -> None:
        """Move towards the variances of this batch, whatever their shape, [parts, ...]."""
        finite = torch.nan_to_num(variances.detach(), nan=torch.finfo(variances.dtype).max)
        if self.variances is None or self.variances.shape != finite.shape:
            self.variances = finite.clone()
        else:
            self.variances = torch.lerp(finite, self.variances.to(finite), decay)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        self.variances = state_dict.get(f"{prefix}variances")


def mix(rule: InverseVariance, site: SiteContext, parts: Sequence[Sequence[Tensor]],
        tangents: Sequence[Tensor | None]) -> list[Tensor]:
    """Combine the parts' cotangents.

    Args:
        parts: for each part its cotangents, one for each φ, [batch, ...].
        tangents: for each φ its tangents [P, batch, ...] towards the target, or None.

    Returns:
        one cotangent for each φ.
    """
    stacked = [torch.stack(gs) for gs in zip(*parts)]  # for each φ: [parts, batch, ...]
    with torch.no_grad():
        donated = site.weights.get(rule.donor) if rule.donor is not None else None
        if donated is not None:
            weights = [donated] * len(stacked)
        else:
            weights = _weights(rule.weighting, site, [g.detach() for g in stacked], tangents)
            if rule.weighting.k_interval > 1:
                site.weights[site.name] = weights[0]
    return [_combine(w, g) for w, g in zip(weights, stacked)]


def _combine(weights: Tensor, parts: Tensor) -> Tensor:
    """Σ_c w_c g_c, in which a part of weight zero adds nothing even where it is infinite."""
    weights = weights.to(parts.dtype)
    weights = weights.reshape(weights.shape + (1,) * (parts.dim() - weights.dim()))
    return torch.where(weights > 0, weights * parts, 0.0).sum(0)


def _weights(how: Weighting, site: SiteContext, parts: list[Tensor], tangents: Sequence[Tensor | None]
             ) -> list[Tensor]:
    """Weights [parts, 1 or batch, ...], one tensor for each φ."""
    batch = parts[0].shape[1]
    seen = parts if all(t is None for t in tangents) else [_at_target(parts, tangents)]
    halves = how.weights == "crossfit" or (how.weights == "past" and _past(site) is None)
    if halves and batch < 4:  # too few to take a variance of the other half
        return [p.new_full((p.shape[0], 1), 1.0 / p.shape[0]) for p in parts]
    variances = [_variance(g, halves, how.per_coordinate) for g in seen]
    if not how.per_coordinate:
        variances = [torch.stack(variances).sum(0) if len(variances) > 1 else variances[0]]
    if how.weights == "past":
        variances = _with_past(site, variances, halves, how.decay)
    weights = [_inverse(v) for v in variances]
    if halves:
        weights = [_swap(w, batch) for w in weights]
    else:
        weights = [w.unsqueeze(1) for w in weights]
    return weights if len(weights) == len(parts) else weights * len(parts)


def _at_target(parts: list[Tensor], tangents: Sequence[Tensor | None]) -> Tensor:
    """Per-sample gradients at the target, [parts, batch, P]."""
    found: Tensor | None = None
    for part, tangent in zip(parts, tangents):
        if tangent is not None:
            product = part.unsqueeze(1) * tangent  # [parts, P, batch, ...]
            product = product.flatten(3).sum(3) if product.dim() > 3 else product
            found = product if found is None else found + product
    assert found is not None
    return found.transpose(1, 2)


def _variance(parts: Tensor, halves: bool, per_coordinate: bool) -> Tensor:
    """Summed squared deviations over the batch, [parts, *coordinates] or [parts, 2, *coordinates].

    In double precision, so that cotangents up to 1e150 do not overflow; a part whose
    cotangents are not finite has infinite variance.
    """
    if halves:
        parts = parts[:, : parts.shape[1] // 2 * 2].unflatten(1, (-1, 2))
    dims = [1] if per_coordinate else [d for d in range(1, parts.dim()) if not (halves and d == 2)]
    deviation = parts - parts.mean(1, keepdim=True)
    norm = torch.linalg.vector_norm(deviation, dim=dims, dtype=torch.float64)
    return torch.nan_to_num(norm.square(), nan=torch.inf, posinf=torch.inf)


def _inverse(variances: Tensor) -> Tensor:
    """Normalized inverse variances over the parts, by their logarithms; equal where all are infinite."""
    logits = -torch.log(variances.clamp(_TINY, 1e300))
    return torch.softmax(logits, 0)


def _swap(weights: Tensor, batch: int) -> Tensor:
    """[parts, 2, ...] → [parts, batch, ...]: each half gets the weights of the other."""
    turned = weights.flip(1)
    repeats = (1, (batch + 1) // 2) + (1,) * (weights.dim() - 2)
    return turned.repeat(repeats)[:, :batch]


def _past(site: SiteContext) -> Tensor | None:
    assert isinstance(site.state, PastVariances)
    return site.state.variances


def _with_past(site: SiteContext, now: list[Tensor], halves: bool, decay: float) -> list[Tensor]:
    """Variances of the earlier batches; this batch's join them for the next call."""
    assert isinstance(site.state, PastVariances)
    past = site.state.variances
    sizes = [v.sum(1) if halves else v for v in now]
    flat = torch.cat([v.reshape(v.shape[0], -1) for v in sizes], 1)
    site.state.update(flat, decay)
    if past is None or past.shape != flat.shape:
        return now
    pieces = past.to(flat).split([v[0].numel() for v in sizes], 1)
    return [piece.reshape(v.shape) for piece, v in zip(pieces, sizes)]


class Mix(Function):
    """Copies of φ, one for each part; backward mixes the cotangents that come back at them.

    First derivatives only: of a mixture through `rsample` a second derivative would be biased.
    """

    @staticmethod
    def forward(ctx: Any, rule: InverseVariance, site: SiteContext, parts: int, *tensors: Tensor | None
                ) -> tuple[Tensor, ...]:
        count = len(tensors) // 2
        tangents, phi = tensors[:count], tensors[count:]
        ctx.rule, ctx.site, ctx.parts = rule, site, parts
        ctx.save_for_backward(*tangents)
        return tuple(p.view_as(p) for _ in range(parts) for p in phi if p is not None)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        tangents = ctx.saved_tensors
        count = len(tangents)
        parts = [list(grads[k * count : (k + 1) * count]) for k in range(ctx.parts)]
        mixed = mix(ctx.rule, ctx.site, parts, tangents)
        return (None, None, None, *([None] * count), *mixed)
