"""How many standard errors chance takes, and how many a bias needs to be seen."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist

# How often chance alone may call any estimator of a comparison biased: the usual level of a strict test. A tenth of it
# would raise the limit from 2.6 to 3.3 standard errors for one coordinate, from 3.9 to 4.4 for a hundred.
LEVEL = 0.01
# How often a bias of the size that is named may pass all the same. A tenth of it would name biases of 5.7 standard
# errors of one coordinate in place of 4.9.
FALSE_PASS = 0.01


def limit(comparisons: int, repeats: int, level: float = LEVEL) -> float:
    """Standard errors that none of so many correct coordinates exceeds, but for one in 1/level comparisons."""
    return _student(level / (2 * max(1, comparisons)), repeats - 1)


@dataclass(frozen=True)
class Limits:
    """Standard errors of a coordinate.

    Attributes:
        chance: beyond which it is called biased.
        seen: a bias of that size passes with the probability `FALSE_PASS`.
    """

    chance: float
    seen: float

    @staticmethod
    def of(comparisons: int, repeats: int, level: float = LEVEL) -> Limits:
        """Those of so many coordinates together, each the mean of so many gradients."""
        chance = limit(comparisons, repeats, level)
        return Limits(chance, chance + _student(FALSE_PASS, repeats - 1))


def _student(tail: float, free: int) -> float:
    """A quantile of Student's t, by its expansion about the normal one (Abramowitz & Stegun 1964, 26.7.5)."""
    z = -NormalDist().inv_cdf(tail)
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / free + second / free**2 + third / free**3
