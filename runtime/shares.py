"""Inverse-variance weights of two parts in few operations, where numbers can be looked at.

At a small site a step costs as many microseconds as it has operations. On the CPU looking at a
number is free, so Python takes the variances from four moments and sees whether they are finite;
what is out of the ordinary is left to `propc.runtime.mixing`, which branches on no value.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

Grads = Sequence[tuple[Tensor, ...]]
Look = Callable[[list[Tensor]], "list[float] | None"]

FEW = 16  # numbers in a row that Python takes the norm of sooner than torch


def mix_two(grads: Grads, groups: int, variances: Look | None = None) -> list[Tensor] | None:
    """Combine two parts with weights ∝ 1/variance; each group takes the weights of the next one.

    Args:
        grads: for each φ the cotangents of the two parts, each [batch, ...].
        groups: 1, or several for crossfit.
        variances: of the parts in the groups, elsewhere than here, from the cotangents on each φ [2, batch, ...]; None
            where they cannot be had as numbers.

    Returns:
        one cotangent for each φ, [batch, ...]; None where this needs more care.
    """
    both = _together(grads, groups)
    if both is None:
        return None
    rows = both.view(2 * len(grads) * groups, -1)
    own = _weighed(both, rows, grads, groups, variances)
    return None if own is None else _mixed(both, rows, grads, [*own[1:], own[0]])


def rehearse_two(
    grads: Grads, groups: int, running: bool, memo: Any, variances: Look | None = None
) -> list[Tensor] | None:
    """The same, where groups have weights of their own in a rehearsal of the reverse pass, and note them.

    Args:
        running: whether this is the rehearsal.
        memo: what stays of it, and takes attributes.
    """
    both = _together(grads, groups)
    if both is None:
        return None
    rows = both.view(2 * len(grads) * groups, -1)
    if running:
        memo.numbers = _weighed(both, rows, grads, groups, variances)
    own: list[float] | None = memo.numbers
    return None if own is None else _mixed(both, rows, grads, own if running else [*own[1:], own[0]])


def _together(grads: Grads, groups: int) -> Tensor | None:
    """The cotangents of all φ behind one another, first of one part, then of the other."""
    first, count = grads[0][0], len(grads)
    shape = first.shape
    if shape[0] < 2 * groups or shape[0] % groups or not first.is_cpu:
        return None
    if count == 1:
        return torch.cat(grads[0])
    if any(path.shape != shape for path, _ in grads):
        return None
    return torch.cat([g[k] for k in (0, 1) for g in grads])


def _weighed(both: Tensor, rows: Tensor, grads: Grads, groups: int, variances: Look | None) -> list[float] | None:
    """The weight of the second part, from each group's variances.

    Args:
        rows: the same as `both`, a row for each part, φ and group.
    """
    if variances is None:
        found = quick_variances(rows.detach() if both.requires_grad else rows, grads[0][0].shape[0] // groups)
    else:
        found = variances(list(both.detach().view(2, len(grads), *grads[0][0].shape).unbind(1)))
    return None if found is None else weights_of(found, groups, both.dtype)


def _mixed(both: Tensor, rows: Tensor, grads: Grads, weights: Sequence[float]) -> list[Tensor]:
    """One cotangent for each φ, with a weight of the second part for each group."""
    count, groups = len(grads), len(weights)
    half, each = count * groups, rows.unbind()
    if both.requires_grad:
        mixed = [torch.lerp(each[i], each[half + i], weights[i % groups]) for i in range(half)]
        return list(torch.cat(mixed).view(count, *grads[0][0].shape).unbind())
    for i in range(half):
        each[i].lerp_(each[half + i], weights[i % groups])
    batch = grads[0][0].shape[0]
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


def weights_of(found: Sequence[float], groups: int, dtype: torch.dtype) -> list[float] | None:
    """The weight that the variances of each group give to the second part; None if one is not finite.

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
    return [path / (path + score) for path, score in zip(least, least[groups:])]


def _norms(rows: Tensor) -> list[float]:
    found: list[float] = torch.linalg.vector_norm(rows, 2, 1).tolist()
    return found


@cache
def _limits(dtype: torch.dtype, size: int) -> tuple[float, float]:
    """By what a squared sum over `size` rows counts, with what it may have gained by rounding; the least variance."""
    known = torch.finfo(dtype)
    return (1 + 4 * known.eps) ** 2 / size, known.tiny
