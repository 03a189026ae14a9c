"""Figures of an estimator: how far its mean gradient is from the reference, and what a step costs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist, median
from typing import Any

import torch
from torch import Tensor

from propc.diagnostics.comparison.comparison import LEVEL, Row
from propc.diagnostics.comparison.reference import Reference
from propc.diagnostics.comparison.steps import Candidate, Situation, words


def limit(comparisons: int, repeats: int) -> float:
    """Standard errors that none of so many correct coordinates exceeds in 99 of 100 comparisons.

    The quantile of Student's t, by its expansion about the normal one (Abramowitz & Stegun 1964, 26.7.5).
    """
    z, free = -NormalDist().inv_cdf(LEVEL / (2 * max(1, comparisons))), repeats - 1
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / free + second / free**2 + third / free**3


def row(candidate: Candidate, known: Reference | None, situation: Situation, bound: float) -> Row:
    """The record of an estimator."""
    row: Row = {"estimator": candidate.label, "mean": None}
    row |= dict.fromkeys(("bias", "stderr", "bias_se", "variance", "time", "efficiency"), math.nan)
    row |= {"worst": "", "significant": None, "error": ""}
    if candidate.error is not None:
        return row | {"error": words(candidate.error)}
    variance, time = candidate.variance, median(candidate.seconds)
    row |= {
        "mean": as_targets([m.mean for m in candidate.moments], situation),
        "variance": variance,
        "time": time,
        "efficiency": 1 / (variance * time) if variance else math.inf,
    }
    if candidate.broken:
        row["error"] = f"the gradient was not finite in {candidate.broken} of {len(candidate.seconds)} steps"
    elif known is not None:
        row |= _bias(candidate, known, situation, bound)
    return row


def _bias(candidate: Candidate, known: Reference, situation: Situation, bound: float) -> Row:
    """How far the mean gradient is from the reference."""
    square, noise = 0.0, 0.0
    worst, place = 0.0, ""
    for (name, target), moments, mean, error in zip(
        situation.targets.items(), candidate.moments, known.mean, known.error
    ):
        if not mean.numel():
            continue
        off, allowed = moments.mean - mean, moments.variance / moments.count + error
        square, noise = square + float(off.square().sum()), noise + float(allowed.sum())
        errors = off.abs() / (allowed.sqrt() + _rounding(target, mean))
        here = int(errors.argmax())
        if float(errors.flatten()[here]) > worst:
            worst, place = float(errors.flatten()[here]), _coordinate(name, mean, here)
    return {
        "bias": math.sqrt(square),
        "stderr": math.sqrt(noise),
        "bias_se": worst,
        "worst": place,
        "significant": worst > bound,
    }


def _rounding(target: Tensor, mean: Tensor) -> Tensor:
    """A standard error that is rounding, for gradients that do not vary."""
    return 32 * torch.finfo(target.dtype).eps * mean.abs().max() + torch.finfo(torch.float64).tiny


def _coordinate(name: str, mean: Tensor, index: int) -> str:
    """A name for one coordinate, such as ``theta[2, 0]``."""
    if not mean.dim():
        return name
    return f"{name}[{', '.join(str(int(i)) for i in torch.unravel_index(torch.tensor(index), mean.shape))}]"


def as_targets(values: Sequence[Tensor], situation: Situation) -> Any:
    """A tensor for one target, else one for each name."""
    made = [
        torch.view_as_complex(value) if target.is_complex() else value
        for value, target in zip(values, situation.targets.values())
    ]
    return made[0] if len(made) == 1 else dict(zip(situation.targets, made))
