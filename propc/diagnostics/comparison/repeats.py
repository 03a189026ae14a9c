"""How many gradients: a number, or as many as it takes to see a bias of some size."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from propc.diagnostics.comparison.comparison import Row
from propc.errors import PropcTypeError, PropcValueError, message

FIRST = 50  # gradients before any is told how many it needs: a standard error is then known to a tenth, √(1/98)
MOST = 10_000  # of a step of a millisecond, forward and backward, ten seconds for each estimator
# From fewer gradients than it needs, where noise makes up the mean, an estimator seems to need less than it does; what
# seems to need so many times the most will not be seen.
HOPELESS = 4


@dataclass(frozen=True)
class Repeats:
    """What `repeats=` means.

    Attributes:
        count: of gradients, if that is fixed, else 0.
        share: else the bias to be seen, over the largest coordinate of the gradient.
    """

    count: int = 0
    share: float = 0.0

    @staticmethod
    def of(given: Any) -> Repeats:
        """Of a number, or a string such as ``"5%"``.

        Raises:
            PropcValueError: fewer than two; no percentage, or one beyond 100.
            PropcTypeError: neither a number nor a string.
        """
        if isinstance(given, str):
            return Repeats(share=_share(given))
        if isinstance(given, bool) or not isinstance(given, (int, float)):
            raise PropcTypeError(message(f"repeats={given!r}", _FIX))
        if given < 2 or int(given) != given:
            raise PropcValueError(message(f"repeats={given!r}", f"A variance needs two or more. {_FIX}"))
        return Repeats(int(given))

    @property
    def start(self) -> int:
        """How many to begin with."""
        return self.count or FIRST

    def next(self, count: int, rows: Sequence[Row]) -> int:
        """How many to have next, after so many with these figures; the same if they suffice, or more do not help."""
        needs = [self.needed(count, row) for row in rows if self.share]
        within = max((need for need in needs if need <= HOPELESS * MOST), default=0)
        return max(count, min(math.ceil(1.05 * within), 4 * count, MOST)) if within > count else count

    def needed(self, count: int, row: Row) -> float:
        """How many an estimator needs, judging by its figures after so many; none where it has no figures."""
        share: float = row["missed_share"]
        return 0.0 if math.isnan(share) else count * (share / self.share) ** 2

    def short_of(self, count: int, row: Row) -> str:
        """What to say where so many did not suffice."""
        need = self.needed(count, row)
        many = (
            f"needs some {need:,.0f} gradients to be seen" if math.isfinite(need) else "of a gradient of 0 is nothing"
        )
        return f"a bias of {100 * self.share:g}% {many}; {MOST:,} are the most"


_FIX = 'Give a number of gradients, or the bias to be seen, such as repeats="5%".'


def _share(given: str) -> float:
    found = re.fullmatch(r"\s*(\d+\.?\d*|\.\d+)\s*%\s*", given)
    share = float(found[1]) / 100 if found else 0.0
    if not 0 < share <= 1:
        raise PropcValueError(message(f"repeats={given!r} is no percentage from 0% to 100%", _FIX))
    return share
