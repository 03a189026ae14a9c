"""Inverse-variance weights of two parts in few operations, where numbers can be looked at.

At a small site a step costs as many microseconds as it has operations. On the CPU looking at a
number is free, so Python takes the variances from four moments and sees whether they are finite;
what is out of the ordinary is left to `propc.runtime.mixing`, which branches on no value.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor


def mix_two(grads: Sequence[tuple[Tensor, ...]], groups: int) -> list[Tensor] | None:
    """Combine two parts with weights ∝ 1/variance; of two groups each takes the weights of the other.

    Args:
        grads: for each φ the cotangents of the two parts, each [batch, ...].
        groups: 1, or 2 for crossfit.

    Returns:
        one cotangent for each φ, [batch, ...]; None where this needs more care.
    """
    shape = grads[0][0].shape
    rows = shape[0] // groups
    if rows < 2 or shape[0] % groups or len({g[0].shape for g in grads}) > 1 or not grads[0][0].is_cpu:
        return None
    both = torch.cat([g[0] for g in grads] + [g[1] for g in grads])
    shares = _shares(both.detach().view(2, len(grads), groups, rows, -1), rows)
    if shares is None:
        return None
    first, second = both.view(2, len(grads), groups, -1).unbind(0)
    weight = torch.tensor(shares, dtype=both.dtype)
    mixed = torch.lerp(first, second, weight) if both.requires_grad else first.lerp_(second, weight)
    return list(mixed.view(len(grads), *shape).unbind(0))


def _shares(seen: Tensor, rows: int) -> list[list[float]] | None:
    """The weight of the second part in each group; None if a moment is not finite, or not to be looked at.

    Args:
        seen: [2, φ, groups, rows, coordinates].
    """
    try:
        sizes = torch.linalg.vector_norm(seen, dim=(1, 3, 4)).tolist()
        means = torch.linalg.vector_norm(seen.sum(3), dim=(1, 3)).tolist()
    except RuntimeError:  # under vmap, or on fake tensors
        return None
    rounding, tiny = _limits(seen.dtype)
    first, second = (
        [max(size * size - mean * mean * rounding / rows, tiny) for size, mean in zip(*moments)]
        for moments in zip(sizes, means)
    )
    if not math.isfinite(sum(first) + sum(second)):
        return None
    return [[a / (a + b)] for a, b in zip(reversed(first), reversed(second))]


@cache
def _limits(dtype: torch.dtype) -> tuple[float, float]:
    """What a squared mean may have gained by rounding, as a factor; the least variance."""
    known = torch.finfo(dtype)
    return (1 + 4 * known.eps) ** 2, known.tiny
