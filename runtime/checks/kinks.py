"""Kinks of log-probabilities, which second derivatives do not see."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from propc.distributions.score import drawn, row_score
from propc.propagators import SiteContext
from propc.util.torch_rng import same_random

NUMBERS, LEAST, MOST = 1024, 512, 2**20  # how many are drawn, for how many scores at least, and no more than so many
FAR, PART = 8.0, 0.05  # standard errors from zero, and a part of what should be balanced
WRONG = 6.0  # standard errors of the mean score from zero, from which on nothing is said here


def has_kink(context: SiteContext, phi: Sequence[Tensor]) -> bool:
    """Whether second derivatives of a law's log p in those of φ that want a gradient miss something.

    Where log p is smooth, E[(∂ log p)²] = −E[∂² log p]. A kink as that of Laplace's loc has its curvature in one point,
    where no draw lies. Tried on the law's own draws, each tensor moved as a whole.
    """
    live = [i for i, p in enumerate(phi) if p.requires_grad]
    fixed = [p.detach() for p in phi]
    with same_random(), torch.enable_grad():
        try:
            return any(_unbalanced(context, fixed, index) for index in live)
        except Exception:  # a law may have no second derivative, or do anything if it is a user's: nothing is known
            return False


def _unbalanced(context: SiteContext, phi: Sequence[Tensor], index: int) -> bool:
    shift = torch.zeros((), dtype=phi[index].dtype, device=phi[index].device, requires_grad=True)
    dist = context.build([p + shift if i == index else p for i, p in enumerate(phi)])
    rows, each = math.prod((dist.batch_shape + dist.event_shape)[: context.lead]), math.prod(dist.batch_shape)
    each *= math.prod(dist.event_shape)
    draws = max(1, NUMBERS // max(1, each), math.ceil(LEAST / max(1, rows)))
    if draws > 1 and draws * each > MOST:
        return False
    trail = tuple(value.detach() for value in drawn(dist, (draws,)))
    first, second = _derivatives(row_score(dist, trail, 1 + context.lead).flatten(), shift)
    excess, square = first.square() + second, first.square().mean()
    root = len(excess) ** 0.5
    if bool(first.mean().abs() > WRONG * first.std() / root):
        return False
    return bool(excess.mean().abs() > FAR * excess.std() / root) and bool(excess.mean().abs() > PART * square)


def _derivatives(logp: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    """The first and second derivative of each draw's log-probability, by differentiating in its weight."""
    weight = torch.ones_like(logp, requires_grad=True)
    (slope,) = torch.autograd.grad((weight * logp).sum(), shift, create_graph=True)
    (first,) = torch.autograd.grad(slope, weight, retain_graph=True)
    if not slope.requires_grad:
        return first, torch.zeros_like(first)
    (curve,) = torch.autograd.grad(slope, shift, create_graph=True, allow_unused=True)
    if curve is None or not curve.requires_grad:
        return first, torch.zeros_like(first)
    (second,) = torch.autograd.grad(curve, weight, allow_unused=True)
    return first, torch.zeros_like(first) if second is None else second
