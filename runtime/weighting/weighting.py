"""The options of inverse-variance weights: which variance decides, and over which samples."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from propc.errors import PropcTypeError, PropcValueError, message
from propc.util.configure import Configurable, one_of

REHEARSED = "rehearsed"


@dataclass(frozen=True, kw_only=True)
class Weighting(Configurable):
    """Which variance decides, and over which samples: the options of `tp`, `combine`, `gs-tp` and their rule.

    Attributes:
        target: name of the parameter, argument or node where the variance is taken; None is φ itself.
        per_coordinate: one weight for each coordinate of φ instead of one for the site.
        weights: ``same`` batch, ``past`` batches (moving moments), or ``crossfit``: the weights of
            each group of rows come from the next group, those of the last from the first; ``rehearsed`` is
            crossfit whose weights come from a rehearsal of the reverse pass (`propc.runtime.weighting.two_pass`).
        folds: how many groups crossfit has.
        k_interval: weights are computed at every k_interval-th site and reused between.
        decay: of the moving moments.

    Raises:
        PropcValueError: a value that an option cannot have, or two options that exclude each other.
    """

    target: str | None = None
    per_coordinate: bool = False
    weights: str = "crossfit"
    folds: int = 2
    k_interval: int = 1
    decay: float = 0.9  # a choice: moments of the last ten batches or so

    def __post_init__(self) -> None:
        one_of("weights", self.weights, ("same", "past", "crossfit", REHEARSED))
        if not isinstance(self.k_interval, int) or self.k_interval < 1:
            raise PropcValueError(message(f"option k_interval={self.k_interval!r} must be a positive integer"))
        if not isinstance(self.folds, int) or self.folds < 2:
            raise PropcValueError(message(f"option folds={self.folds!r} must be an integer, two or more"))
        if not isinstance(self.decay, (int, float)) or not 0 <= self.decay < 1:
            raise PropcValueError(message(f"option decay={self.decay!r} must be a number from 0 to below 1"))
        if not isinstance(self.target, (str, type(None))):
            raise PropcTypeError(message(f"option target={self.target!r} must be a name", "Such as target='beta'."))
        if self.weights == REHEARSED and self.k_interval > 1:
            raise PropcValueError(
                message(
                    f"weights={REHEARSED!r} are taken at every site; got k_interval={self.k_interval}",
                    "Leave out k_interval=, or use weights='crossfit'.",
                )
            )
        if self.per_coordinate and self.target is not None:
            raise PropcValueError(
                message(
                    "per_coordinate weights exist only at the site, not at a target",
                    "Leave out target= or per_coordinate=.",
                )
            )

    @cached_property
    def groups(self) -> int:
        """In how many groups of rows a batch is weighed."""
        return self.folds if self.weights in ("crossfit", REHEARSED) else 1

    @cached_property
    def quick(self) -> bool:
        """Whether each site is weighed as a whole, by this batch alone."""
        return not self.per_coordinate and self.weights in ("same", "crossfit") and self.k_interval == 1
