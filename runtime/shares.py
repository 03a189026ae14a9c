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

FEW = 16  # numbers in a row that Python takes the norm of sooner than torch


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
    if batch < 2 * groups or batch % groups or not first.is_cpu:
        return None
    if count > 1 and any(path.shape != shape for path, _ in grads):
        return None
    both = torch.cat(grads[0] if count == 1 else [g[k] for k in (0, 1) for g in grads])
    rows = both.view(2 * half, -1)
    if variances is None:
        found = quick_variances(rows.detach() if both.requires_grad else rows, batch // groups)
    else:
        found = variances(list(both.detach().view(2, count, *shape).unbind(1)))
    weights = None if found is None else _weights(found, groups, both.dtype)
    if weights is None:
        return None
    each = rows.unbind()
    if both.requires_grad:
        mixed = [torch.lerp(each[i], each[half + i], weights[i % groups]) for i in range(half)]
        return list(torch.cat(mixed).view(count, *shape).unbind())
    for i in range(half):
        each[i].lerp_(each[half + i], weights[i % groups])
    return [both[:batch]] if count == 1 else list(both[: count * batch].split(batch))


def quick_variances(seen: Tensor, size: int) -> list[float] | None:
    """Summed squared deviations as numbers; None if they are not to be looked at.

    Args:
        seen: [parts · φ · groups, size · coordinates].
        size: of a group.
    """
    try:
        norms = _norms(seen)
        sums = seen.view(len(norms), size, -1).sum(1)
        means: list[float] = [math.hypot(*each) for each in sums.tolist()] if sums.shape[1] < FEW else _norms(sums)
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
    least = [each if each > tiny else tiny for each in found]
    shares = [path / (path + score) for path, score in zip(least, least[groups:])]
    return [*shares[1:], shares[0]]


def _norms(rows: Tensor) -> list[float]:
    found: list[float] = torch.linalg.vector_norm(rows, 2, 1).tolist()
    return found


@cache
def _limits(dtype: torch.dtype, size: int) -> tuple[float, float]:
    """By what a squared sum over `size` rows counts, with what it may have gained by rounding; the least variance."""
    known = torch.finfo(dtype)
    return (1 + 4 * known.eps) ** 2 / size, known.tiny
