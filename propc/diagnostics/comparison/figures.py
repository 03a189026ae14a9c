"""Figures of an estimator: how far its mean gradient is from the reference, and what a step costs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median
from typing import Any

import torch
from torch import Tensor

from propc.diagnostics.comparison.comparison import Row
from propc.diagnostics.comparison.distance import Distance, between
from propc.diagnostics.comparison.power import Limits
from propc.diagnostics.comparison.reference import Reference, measured
from propc.diagnostics.comparison.steps import Candidate, Situation, words


def row(candidate: Candidate, known: Reference | None, situation: Situation, limits: Limits) -> Row:
    """The record of an estimator."""
    row: Row = {"estimator": candidate.label, "mean": None}
    row |= dict.fromkeys(("bias", "stderr", "bias_se", "missed", "missed_share"), math.nan)
    row |= dict.fromkeys(("variance", "time", "efficiency"), math.nan)
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
        row |= _bias(between(situation.targets, measured(candidate), known), limits)
    return row


def _bias(apart: Distance, limits: Limits) -> Row:
    """How far the mean gradient is from the reference."""
    return {
        "bias": apart.length,
        "stderr": apart.chance,
        "bias_se": apart.worst,
        "worst": apart.place,
        "significant": apart.worst > limits.chance,
        "missed": limits.seen * apart.error,
        "missed_share": apart.share(limits.seen),
    }


def as_targets(values: Sequence[Tensor], situation: Situation) -> Any:
    """A tensor for one target, else one for each name."""
    made = [
        torch.view_as_complex(value) if target.is_complex() else value
        for value, target in zip(values, situation.targets.values())
    ]
    return made[0] if len(made) == 1 else dict(zip(situation.targets, made))
