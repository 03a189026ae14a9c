"""What the reproductions share: the examples' and benchmarks' own helpers, and variances with error bars."""

import math
import sys
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "examples"), str(ROOT / "benchmarks")]

import chaotic_rnn  # noqa: E402
import models  # noqa: E402
import report  # noqa: E402
import timing  # noqa: E402

__all__ = ["Variance", "chaotic_rnn", "models", "report", "timing"]


@dataclass(frozen=True)
class Variance:
    """The variance of independent draws, and the standard error of that figure."""

    value: float
    stderr: float

    @classmethod
    def of(cls, draws: Tensor) -> "Variance":
        """From draws [n]; the standard error comes from their fourth moment, not from a Normal law.

        Raises:
            ValueError: fewer than four draws.
        """
        n = len(draws)
        if n < 4:
            raise ValueError(f"the error of a variance needs at least 4 draws, got {n}")
        squares = (draws - draws.mean()).square()
        value = squares.sum().item() / (n - 1)
        spread = squares.square().mean().item() - (n - 3) / (n - 1) * value**2
        return cls(value, (max(spread, 0.0) / n) ** 0.5)

    def deviation(self, other: float) -> float:
        """How far a variance measured elsewhere, with as many draws, is from this one, in standard errors.

        Both are taken to have the relative sampling error of this one, and `other` to be rounded
        to two digits.
        """
        relative = (2 * (self.stderr / self.value) ** 2 + 0.02**2) ** 0.5
        return math.log(self.value / other) / relative

    def __str__(self) -> str:
        return f"{self.value:.2g} ± {self.stderr:.1g}"
