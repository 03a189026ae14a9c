"""Inverse-variance weights of two parts (`propc.runtime.weighting.weights`) where numbers can be looked at.

At a small site a step costs as many microseconds as it has operations. On the CPU looking at a
number is free, so Python takes the variances from four moments and sees whether they are finite;
what is out of the ordinary is left to `propc.runtime.weighting.mix`, which branches on no value.
"""

from __future__ import annotations

import math
import threading
from array import array
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor

from propc.util.rounding import spare

Grads = Sequence[tuple[Tensor, ...]]
Look = Callable[[list[Tensor]], "list[float] | None"]

_CODES: dict[torch.dtype, Literal["f", "d"]] = {torch.float32: "f", torch.float64: "d"}
_norm = torch.linalg.vector_norm
# Numbers in a row that Python takes the norm of sooner than torch. Measured for four rows (two parts, two groups): 0.4
# of torch's time at 2, 0.7 at 16, 1.2 at 32.
FEW = 16


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
    rows = _stacked(grads, groups)
    if rows is None:
        return None
    own = _weighed(rows, grads, groups, variances)
    return None if own is None else _mixed(rows, grads, [*own[1:], own[0]])


def rehearse_two(
    grads: Grads, groups: int, running: bool, memo: Any, variances: Look | None = None
) -> list[Tensor] | None:
    """The same, where groups have weights of their own in a rehearsal of the reverse pass, and note them.

    Args:
        running: whether this is the rehearsal.
        memo: what stays of it, and takes attributes.
    """
    rows = _stacked(grads, groups)
    if rows is None:
        return None
    if running:
        memo.numbers = _weighed(rows, grads, groups, variances)
    own: list[float] | None = memo.numbers
    return None if own is None else _mixed(rows, grads, own if running else [*own[1:], own[0]])


def _stacked(grads: Grads, groups: int) -> Tensor | None:
    """The cotangents of all φ, first of one part, then of the other: [parts · φ · groups, rows, coordinates]."""
    first, count = grads[0][0], len(grads)
    shape = first.shape
    if shape[0] < 2 * groups or shape[0] % groups or not first.is_cpu or first.dtype not in _CODES:
        return None
    if count > 1 and any(path.shape != shape for path, _ in grads):
        return None
    both = torch.cat(grads[0] if count == 1 else [g[k] for k in (0, 1) for g in grads])
    return both.view(2 * count * groups, shape[0] // groups, -1)


def _weighed(rows: Tensor, grads: Grads, groups: int, variances: Look | None) -> list[float] | None:
    """The weight of the second part, from each group's variances."""
    if variances is None:
        found = quick_variances(rows.detach() if rows.requires_grad else rows)
    else:
        found = variances(list(rows.detach().view(2, len(grads), *grads[0][0].shape).unbind(1)))
    return None if found is None else _weights_of(found, groups, rows.dtype)


def _mixed(rows: Tensor, grads: Grads, weights: Sequence[float]) -> list[Tensor]:
    """One cotangent for each φ, with a weight of the second part for each group."""
    count, shape = len(grads), grads[0][0].shape
    path, score = rows.view(2, count, len(weights), *rows.shape[1:]).unbind()
    if rows.requires_grad:
        mixed = torch.lerp(path, score, rows.new_tensor(weights)[:, None, None])
    else:
        mixed = torch.lerp(path, score, _tensor_of(weights, path.dtype), out=path)
    return [mixed.view(shape)] if count == 1 else list(mixed.view(count, *shape).unbind())


def quick_variances(rows: Tensor) -> list[float] | None:
    """Summed squared deviations as numbers; None if they are not to be looked at.

    Args:
        rows: [parts · φ · groups, rows of a group, coordinates].
    """
    try:
        norms = _norm(rows, 2, (1, 2)).tolist()
        sums = rows.sum(1)
        means = [math.hypot(*each) for each in sums.tolist()] if sums.shape[1] < FEW else _norm(sums, 2, 1).tolist()
    except RuntimeError:  # under vmap, or on fake tensors
        return None
    share, _ = _limits(rows.dtype, rows.shape[1])
    return [norm * norm - share * mean * mean for norm, mean in zip(norms, means)]


def _weights_of(found: Sequence[float], groups: int, dtype: torch.dtype) -> list[float] | None:
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
    return [1.0 / (1.0 + score / path) for path, score in zip(least, least[groups:])]  # a sum of both could overflow


class _Scratch(threading.local):
    """Numbers and the tensors that share their memory, by how many there are and their dtype."""

    def __init__(self) -> None:
        self.known: dict[tuple[int, torch.dtype], tuple[array[float], Tensor]] = {}


_SCRATCH = _Scratch()


def _tensor_of(weights: Sequence[float], dtype: torch.dtype) -> Tensor:
    """Weights as a tensor [groups, 1, 1], to be read at once: this thread will write over it."""
    known = _SCRATCH.known.get((len(weights), dtype))
    if known is None:
        numbers: array[float] = array(_CODES[dtype], weights)
        known = _SCRATCH.known[len(weights), dtype] = numbers, torch.frombuffer(numbers, dtype=dtype)[:, None, None]
    memory, made = known
    for i, weight in enumerate(weights):
        memory[i] = weight
    return made


@cache
def _limits(dtype: torch.dtype, size: int) -> tuple[float, float]:
    """By what a squared sum over `size` rows counts, with what it may have gained by rounding; the least variance."""
    return spare(dtype) ** 2 / size, torch.finfo(dtype).tiny
