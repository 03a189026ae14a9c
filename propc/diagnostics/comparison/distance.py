"""How far two mean gradients are apart, against what chance does."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from propc.diagnostics.comparison.reference import Reference


@dataclass(frozen=True)
class Difference:
    """Of two gradients in one tensor, coordinate by coordinate.

    Attributes:
        name: of the tensor.
        mean, other: the gradients.
        error: standard errors of their difference.
        in_errors: the difference in standard errors, of which a part is rounding.
    """

    name: str
    mean: Tensor
    other: Tensor
    error: Tensor
    in_errors: Tensor

    def beyond(self, bound: float) -> list[int]:
        """Which coordinates differ by more standard errors, as numbers of the flat tensor."""
        return [int(i) for i in (self.in_errors.flatten() > bound).nonzero()]

    def coordinate(self, index: int) -> str:
        """A name for one coordinate, such as ``theta[2, 0]``."""
        if not self.mean.dim():
            return self.name
        places = torch.unravel_index(torch.tensor(index), self.mean.shape)
        return f"{self.name}[{', '.join(str(int(i)) for i in places)}]"


@dataclass(frozen=True)
class Distance:
    """Of one mean gradient from another.

    Attributes:
        length: of the difference.
        chance: the length that chance alone gives it.
        worst: the largest difference of a coordinate, in standard errors.
        place: the name of that coordinate; empty where nothing differs.
        error: the largest standard error of a coordinate.
        size: the largest coordinate of the gradient that is compared with.
    """

    length: float
    chance: float
    worst: float
    place: str
    error: float
    size: float

    def share(self, errors: float) -> float:
        """So many standard errors, over the largest coordinate; infinite where that is zero."""
        missed = errors * self.error
        return missed / self.size if self.size else math.inf if missed else 0.0


def differences(targets: Mapping[str, Tensor], mine: Reference, other: Reference) -> Iterator[Difference]:
    """Of two estimates of the gradient in these tensors; empty tensors are left out."""
    for (name, target), mean, noise, known, its_noise in zip(
        targets.items(), mine.mean, mine.error, other.mean, other.error
    ):
        if known.numel():
            error = (noise + its_noise).sqrt()
            yield Difference(name, mean, known, error, (mean - known).abs() / (error + _rounding(target, known)))


def between(targets: Mapping[str, Tensor], mine: Reference, other: Reference) -> Distance:
    """The distance of an estimate of the gradient in these tensors from another."""
    square = noise = error = size = worst = 0.0
    place = ""
    for off in differences(targets, mine, other):
        square += float((off.mean - off.other).square().sum())
        noise += float(off.error.square().sum())
        error, size = max(error, float(off.error.max())), max(size, float(off.other.abs().max()))
        here = int(off.in_errors.argmax())
        if float(off.in_errors.flatten()[here]) > worst:
            worst, place = float(off.in_errors.flatten()[here]), off.coordinate(here)
    return Distance(math.sqrt(square), math.sqrt(noise), worst, place, error, size)


def _rounding(target: Tensor, mean: Tensor) -> Tensor:
    """A standard error that is rounding, for gradients that do not vary."""
    return 32 * torch.finfo(target.dtype).eps * mean.abs().max() + torch.finfo(torch.float64).tiny
