"""Inverse-variance weights, and the gate that mixes several cotangents on φ into one.

With per-sample cotangents g_c of part c, the weight of c is 1/V_c over the sum of all,
V_c being the sum over samples and coordinates of squared deviations from the mean
(Parmas et al. 2018; for two parts this is total propagation).

Throughout, a batch is seen as [groups, rows]: one group, or two for crossfit, where each
half of the batch takes the weights that the other half gives.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.autograd import Function

from propc.errors import EstimatorError, message

if TYPE_CHECKING:
    from propc.propagators.base import SiteContext
    from propc.propagators.inverse_variance import InverseVariance


@dataclass(frozen=True)
class Weighting:
    """Which variance decides, and over which samples.

    Attributes:
        target: name of the parameter, argument or node where the variance is taken; None is φ itself.
        per_coordinate: one weight for each coordinate of φ instead of one for the site.
        weights: ``same`` batch, ``past`` batches (moving moments), or ``crossfit``: the weights of
            each half of the batch come from the other half.
        k_interval: weights are computed at every k_interval-th site and reused between.
        decay: of the moving moments.
    """

    target: str | None = None
    per_coordinate: bool = False
    weights: str = "crossfit"
    k_interval: int = 1
    decay: float = 0.9


class PastDeviations(nn.Module):
    """Moving root mean square of the parts' deviations; empty until the first backward pass."""

    norms: Tensor | None

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("norms", None)

    def swap(self, norms: Tensor, decay: float) -> Tensor | None:
        """What earlier batches gave, None at first; this batch's [parts, ...] joins them."""
        past = self.norms
        if past is None or past.shape != norms.shape:
            self.norms = norms.nan_to_num()
            return None
        past = past.to(norms)
        self.norms = torch.hypot(past * decay**0.5, norms.nan_to_num() * (1 - decay) ** 0.5)
        return past

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        self.norms = state_dict.get(f"{prefix}norms")


def mix(rule: InverseVariance, site: SiteContext, grads: Sequence[Tensor], tangents: Sequence[Tensor | None]
        ) -> list[Tensor]:
    """Combine the parts' cotangents.

    Args:
        grads: for each φ the cotangents of all parts, [parts, batch, ...].
        tangents: for each φ its tangents [P, batch, ...] towards the target, or None.

    Returns:
        one cotangent for each φ, [batch, ...].
    """
    with torch.no_grad():
        weights = site.weights.get(rule.donor) if rule.donor is not None else None
        if weights is None:
            weights = _weights(rule.weighting, site, grads, tangents)
            if rule.weighting.k_interval > 1:
                site.weights[site.name] = weights
    return [_combine(weights[min(i, len(weights) - 1)], grad) for i, grad in enumerate(grads)]


def _combine(weights: Tensor, grad: Tensor) -> Tensor:
    """Σ_c w_c g_c; `weights` is [parts, groups, 1, coordinates or 1].

    A part with an infinite or undefined cotangent anywhere has weight zero everywhere, so the
    finite stand-ins that are put in their place add nothing.
    """
    parts, batch, *event = grad.shape
    groups = weights.shape[1]
    if batch % groups:
        weights, groups = _by_row(weights, batch), 1
    rows = torch.nan_to_num(grad).reshape(parts, groups, batch // groups, -1)
    if parts == 2:
        mixed = torch.lerp(rows[1], rows[0], weights[0])
    else:
        mixed = (rows * weights).sum(0)
    return mixed.reshape(batch, *event)


def _by_row(weights: Tensor, batch: int) -> Tensor:
    """[parts, 2, 1, ...] → [parts, 1, batch, ...] where the batch is odd; the last row joins the second half."""
    first = batch // 2
    return torch.cat([weights[:, :1].expand(-1, -1, first, -1), weights[:, 1:].expand(-1, -1, batch - first, -1)], 2)


def _weights(how: Weighting, site: SiteContext, grads: Sequence[Tensor], tangents: Sequence[Tensor | None]
             ) -> list[Tensor]:
    """Weights [parts, groups, 1, coordinates or 1]: one tensor for all φ, or one for each."""
    seen = [_at_target(grads, tangents)] if any(t is not None for t in tangents) else grads
    parts, batch = seen[0].shape[:2]
    groups = 2 if how.weights == "crossfit" else 1
    if batch // groups < 2:  # too few to take a variance
        return [seen[0].new_full((parts, 1, 1, 1), 1.0 / parts)]
    norms = [_deviation(g, groups, how.per_coordinate) for g in seen]
    if not how.per_coordinate and len(norms) > 1:
        norms = [torch.linalg.vector_norm(torch.stack(norms), dim=0)]
    if how.weights == "past":
        norms = _with_past(how, site, norms, seen)
    return [_inverse(n) for n in norms]


def _deviation(grad: Tensor, groups: int, per_coordinate: bool) -> Tensor:
    """Root of the summed squared deviations over the rows of each group, [parts, groups, 1, coordinates or 1]."""
    parts, batch = grad.shape[:2]
    rows = batch // groups
    if batch % groups:
        grad = grad[:, : groups * rows]
    grad = grad.reshape(parts, groups, rows, -1)
    deviation = grad - grad.mean(2, keepdim=True)
    return torch.linalg.vector_norm(deviation, dim=2 if per_coordinate else (2, 3), keepdim=True)


def _inverse(norms: Tensor) -> Tensor:
    """Weights ∝ 1/norm² over the parts, by their logarithms; equal for equal norms, also for zeros.

    Of two groups each takes the weights of the other. A part that is not finite in either gets
    weight zero in both; if none is finite, the weights are NaN, and so is the gradient.
    """
    logits = norms.clamp(min=torch.finfo(norms.dtype).tiny).log_().mul_(-2.0)
    if norms.shape[1] > 1:
        logits = torch.add(logits.flip(1), logits, alpha=0.0)  # 0·∞ is NaN
    return torch.softmax(logits.nan_to_num_(nan=-torch.inf, neginf=-torch.inf), 0)


def _at_target(grads: Sequence[Tensor], tangents: Sequence[Tensor | None]) -> Tensor:
    """Per-sample gradients at the target, [parts, batch, P]."""
    found: Tensor | None = None
    for grad, tangent in zip(grads, tangents):
        if tangent is not None:
            product = grad.unsqueeze(1) * tangent  # [parts, P, batch, ...]
            product = product.flatten(3).sum(3) if product.dim() > 3 else product
            found = product if found is None else found + product
    assert found is not None
    return found.transpose(1, 2)


def _with_past(how: Weighting, site: SiteContext, norms: list[Tensor], grads: Sequence[Tensor]) -> list[Tensor]:
    """Norms of the earlier batches; at the first call, which has none, those of crossfit."""
    assert isinstance(site.state, PastDeviations)
    sizes = [n[0].numel() for n in norms]
    past = site.state.swap(torch.cat([n.flatten(1) for n in norms], 1), how.decay)
    if past is not None:
        return [p.reshape(n.shape) for p, n in zip(past.split(sizes, 1), norms)]
    if grads[0].shape[1] < 4:
        return [torch.ones_like(n) for n in norms]
    first = [_deviation(g, 2, how.per_coordinate) for g in grads]
    return first if how.per_coordinate or len(first) == 1 else [torch.linalg.vector_norm(torch.stack(first), dim=0)]


class Mix(Function):
    """Copies of φ, one for each part; backward mixes the cotangents that come back at them.

    First derivatives only: the noise inside `rsample` is not known as a function of the sample,
    without which a second derivative of the mixture would be biased.
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
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        if torch.is_grad_enabled():
            raise EstimatorError(message(
                f"inverse-variance weighting at {ctx.site.spec} gives first derivatives only",
                "For second derivatives (create_graph=True) use 'rp' or 'lr' here, or 'tp' at a Normal.",
                at=f"site {ctx.site.name!r}"))
        tangents = ctx.saved_tensors
        count = len(tangents)
        mixed = mix(ctx.rule, ctx.site, [torch.stack(grads[j::count]) for j in range(count)], tangents)
        return (None, None, None, *([None] * count), *mixed)
