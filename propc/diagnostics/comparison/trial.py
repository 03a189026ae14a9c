"""Candidates before their judges, with as many steps as it takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from propc.diagnostics.comparison.comparison import Row
from propc.diagnostics.comparison.figures import row
from propc.diagnostics.comparison.panel import Panel, Verdict
from propc.diagnostics.comparison.power import Limits
from propc.diagnostics.comparison.repeats import Repeats
from propc.diagnostics.comparison.steps import Candidate, extend, words
from propc.errors import EstimatorError, PropcValueError, message


@dataclass(frozen=True)
class Outcome:
    """What a trial found.

    Attributes:
        repeats: gradients of each candidate.
        verdict: what the judges say.
        limits: of the candidates' coordinates together.
        rows: the record of each candidate.
    """

    repeats: int
    verdict: Verdict
    limits: Limits
    rows: list[Row]


def tried(candidates: Sequence[Candidate], panel: Panel, repeats: Repeats, seed: int) -> Outcome:
    """Steps of candidates and judges until there are enough.

    Raises:
        EstimatorError: none of the candidates works.
        Exception: the error of a reference that the user asked for.
    """
    count = repeats.start
    while True:
        found = _after(candidates, panel, count, seed, progress=bool(repeats.share))
        more = repeats.next(count, found.rows)
        if more == count:
            return found
        count = more


def _after(candidates: Sequence[Candidate], panel: Panel, count: int, seed: int, *, progress: bool) -> Outcome:
    """The outcome after so many steps, which follow those that have been taken."""
    situation = panel.situation
    extend(candidates, situation, count, seed, progress="gradients" if progress else "")
    require_one(candidates)
    panel.run(count, progress="reference" if progress else "")
    verdict = panel.verdict()
    limits = Limits.of(situation.coordinates * len(candidates), count, panel.level)
    rows = [row(candidate, verdict.reference, situation, limits) for candidate in candidates]
    return Outcome(count, verdict, limits, rows)


def require_one(candidates: Sequence[Candidate]) -> None:
    """Check that an estimator is left.

    Raises:
        EstimatorError: with the errors of all.
    """
    if not candidates:
        raise PropcValueError(message("estimators= is empty", "Give one or more."))
    errors = [candidate.error for candidate in candidates if candidate.error is not None]
    if len(errors) == len(candidates):
        lines = "".join(f"\n  {c.label}: {words(e)}" for c, e in zip(candidates, errors))
        raise EstimatorError(f"none of the estimators works on this program:{lines}") from errors[0]
