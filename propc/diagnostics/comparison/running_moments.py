"""Mean and variance of tensors that come one by one, without keeping them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Moments:
    """Running mean and summed squares of deviations, in float64 (Welford 1962).

    Attributes:
        mean: of what has been added, of its shape; a complex tensor counts as pairs of real ones.
        squares: sums of squared deviations from the mean.
        count: how many have been added.
    """

    mean: Tensor
    squares: Tensor
    count: int = 0

    @staticmethod
    def like(value: Tensor, count: int = 0) -> Moments:
        """Those of `count` zeros of a tensor's shape and device."""
        zeros = torch.zeros_like(_real(value), dtype=torch.float64)
        return Moments(zeros, zeros.clone(), count)

    def add(self, value: Tensor | None) -> None:
        """Add a tensor; None counts as zeros."""
        self.count += 1
        off = -self.mean if value is None else _real(value).double() - self.mean
        self.mean += off / self.count
        self.squares += off.square() * ((self.count - 1) / self.count)

    @property
    def variance(self) -> Tensor:
        """The unbiased variance of each coordinate."""
        return self.squares / (self.count - 1)


def _real(value: Tensor) -> Tensor:
    """A dense tensor of real numbers."""
    value = value.detach()
    value = value.to_dense() if value.is_sparse else value
    return torch.view_as_real(value) if value.is_complex() else value
