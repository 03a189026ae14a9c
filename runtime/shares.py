"""Inverse-variance weights of two parts in few operations, where numbers can be looked at.

At a small site a step costs as many microseconds as it has operations. On the CPU looking at a
number is free, so Python takes the variances from four moments and sees whether they are finite;
what is out of the ordinary is left to `propc.runtime.mixing`, which branches on no value.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache

import torch
from torch import Tensor


def mix_two(
    grads: Sequence[tuple[Tensor, ...]],
    groups: int,
    variances: Callable[[list[Tensor]], list[float] | None] | None = None,
) -> list[Tensor] | None:
    """Combine two parts with weights ∝ 1/variance; each group takes the weights of the next one.

    Args:
        grads: for each φ the cotangents of the two parts, each [batch, ...].
        groups: 1, or several for crossfit.
        variances: of the parts in the groups, elsewhere than here, from the cotangents on each φ [2, batch, ...]; None
            where they cannot be had as numbers.

    Returns:
        one cotangent for each φ, [batch, ...]; None where this needs more care.
    """
    first, count = grads[0][0], len(grads)
    shape, half = first.shape, count * groups
    batch = shape[0]
    even = batch >= 2 * groups and not batch % groups
    if not even or not first.is_cpu or (count > 1 and any(path.shape != shape for path, _ in grads)):
        return None
    both = torch.cat([part for k in (0, 1) for part in (g[k] for g in grads)] if count > 1 else grads[0])
    rows = both.view(2 * half, -1)
    if variances is None:
        found = quick_variances(rows.detach() if both.requires_grad else rows, batch // groups)
    else:
        found = variances(list(both.detach().view(2, count, *shape).unbind(1)))
    weights = None if found is None else _weights(found, groups, both.dtype)
    if weights is None:
        return None
    if both.requires_grad:
        mixed = [torch.lerp(rows[i], rows[half + i], weights[i % groups]) for i in range(half)]
        return list(torch.cat(mixed).view(count, *shape).unbind())
    for i in range(half):
        rows[i].lerp_(rows[half + i], weights[i % groups])
    return [both[i * batch : (i + 1) * batch] for i in range(count)]


def quick_variances(seen: Tensor, size: int) -> list[float] | None:
    """Summed squared deviations as numbers; None if they are not to be looked at.

    Args:
        seen: [parts · φ · groups, size · coordinates].
        size: of a group.
    """
    try:
        norms = torch.linalg.vector_norm(seen, 2, 1).tolist()
        means = torch.linalg.vector_norm(seen.view(len(norms), size, -1).sum(1), 2, 1).tolist()
    except RuntimeError:  # under vmap, or on fake tensors
        return None
    share, _ = _limits(seen.dtype, size)
    return [norm * norm - share * mean * mean for norm, mean in zip(norms, means)]


def _weights(found: list[float], groups: int, dtype: torch.dtype) -> list[float] | None:
    """The weight of the second part in each group; None if a variance is not finite.

    Args:
        found: variances [parts · φ · groups].
    """
    if len(found) > 2 * groups:  # several φ count together
        half = len(found) // 2
        found = [sum(found[start : start + half : groups]) for start in (*range(groups), *range(half, half + groups))]
    if not math.isfinite(sum(found)):
        return None
    _, tiny = _limits(dtype, 1)
    path, score = ([max(each, tiny) for each in part] for part in (found[:groups], found[groups:]))
    shares = [a / (a + b) for a, b in zip(path, score)]
    return [*shares[1:], shares[0]]


@cache
def _limits(dtype: torch.dtype, size: int) -> tuple[float, float]:
    """By what a squared sum over `size` rows counts, with what it may have gained by rounding; the least variance."""
    known = torch.finfo(dtype)
    return (1 + 4 * known.eps) ** 2 / size, known.tiny
