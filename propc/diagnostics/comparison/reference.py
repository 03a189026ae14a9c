"""What the mean gradients of estimators are compared with: exact, a long run, or what the user gives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from propc.diagnostics.comparison.labels import label
from propc.diagnostics.comparison.steps import Candidate, Situation
from propc.errors import PropcTypeError, PropcValueError, message


@dataclass(frozen=True)
class Reference:
    """A gradient to compare with.

    Attributes:
        text: where it comes from.
        mean: of each target, in float64.
        error: the squared standard error of each coordinate.
    """

    text: str
    mean: tuple[Tensor, ...]
    error: tuple[Tensor, ...]


def measured(candidate: Candidate, text: str = "", *, exact: bool = False) -> Reference:
    """What a candidate's steps give; without error if they are exact."""
    count = candidate.moments[0].count
    means = tuple(m.mean for m in candidate.moments)
    errors = (torch.zeros_like(m.mean) if exact else m.variance / m.count for m in candidate.moments)
    return Reference(text or f"{count} steps of {candidate.label}", means, tuple(errors))


def pooled(first: Reference, second: Reference) -> Reference:
    """Both together, each target weighted by its inverse variance.

    One weight for all coordinates of a target: where rare events make a gradient, a run that has missed them has a
    small mean and a small variance, and weights of single coordinates would prefer it.
    """
    means, errors = [], []
    for mean, error, other, its_error in zip(first.mean, first.error, second.mean, second.error):
        noise, its_noise = float(error.sum()), float(its_error.sum())
        weight = its_noise / (noise + its_noise) if noise else 1.0
        means.append(weight * mean + (1 - weight) * other)
        errors.append(weight**2 * error + (1 - weight) ** 2 * its_error)
    return Reference(first.text, tuple(means), tuple(errors))


def asked(given: Any, program: Any, situation: Situation) -> Reference | Candidate | None:
    """What `reference=` means: gradients, a candidate for a long run, or None where it says nothing.

    Args:
        given: as of `propc.compare`.
        program: a compiled function, method or module.
        situation: the call.

    Raises:
        PropcValueError: gradients of another shape or number; an unknown estimator.
    """
    if given is None:
        return None
    return _given(given, situation) if _is_gradient(given) else Candidate(label(given), program.with_estimator(given))


def _is_gradient(given: Any) -> bool:
    if isinstance(given, Mapping):
        return all(isinstance(value, (Tensor, int, float)) for value in given.values())
    if isinstance(given, (list, tuple)):
        return all(isinstance(value, (Tensor, int, float)) for value in given)
    return isinstance(given, (Tensor, int, float))


def _given(given: Any, situation: Situation) -> Reference:
    """Gradients that the user gave: one for each target.

    Raises:
        PropcValueError: of another shape, or not for all targets.
    """
    names = list(situation.targets)
    if not isinstance(given, (Mapping, list, tuple)):
        given = [given]
    values = list(given) if not isinstance(given, Mapping) else [given.get(name) for name in names]
    if len(values) != len(names) or any(value is None for value in values) or len(given) != len(names):
        raise PropcValueError(
            message(
                f"reference= gives {len(given)} gradients; wanted are those of {', '.join(map(repr, names))}",
                "Give a tensor for each, or a mapping from these names.",
            )
        )
    means = tuple(_fitting(value, name, situation.targets[name]) for name, value in zip(names, values))
    return Reference("given", means, tuple(map(torch.zeros_like, means)))


def _fitting(value: Any, name: str, target: Tensor) -> Tensor:
    made = torch.as_tensor(value, device=target.device).detach()
    if made.shape != target.shape:
        raise PropcValueError(
            message(f"reference= gives shape {list(made.shape)} for {name!r}, whose shape is {list(target.shape)}")
        )
    if target.is_complex():
        return torch.view_as_real(made.to(torch.complex128))
    if made.is_complex():
        raise PropcTypeError(message(f"reference= gives a complex gradient for {name!r}, which is real"))
    return made.double()
