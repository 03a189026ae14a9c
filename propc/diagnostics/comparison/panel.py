"""Judges at work: a reference is what two unlike unbiased estimators agree on."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from propc.diagnostics.comparison.distance import between
from propc.diagnostics.comparison.judges import (
    LARGEST,
    at_work,
    called,
    enumerated,
    first_opinions,
    labour,
    quietly,
    second_opinions,
)
from propc.diagnostics.comparison.power import Limits
from propc.diagnostics.comparison.reference import Reference, measured, pooled
from propc.diagnostics.comparison.steps import Candidate, Situation, extend
from propc.util.formatting import two_digits

# Steps after which the most efficient of the unbiased estimators is chosen: a variance is then known to a third,
# √(2/19), enough to tell those that differ twofold.
PILOT = 20
# Times as many steps as the candidates take, of who confirms a judge: its standard error is then 0.6 of that of a
# candidate like it. Ten would double the time of a reference.
CONFIRMING = 3


@dataclass(frozen=True)
class Verdict:
    """What judges say.

    Attributes:
        reference: None where nobody can judge, or where two disagree.
        agreement: who confirms the reference and how well, or who disagrees; may be empty.
        missed: how far two that agree may be apart without being seen, over the largest coordinate.
    """

    reference: Reference | None = None
    agreement: str = ""
    missed: float = 0.0


@dataclass
class Panel:
    """Two unbiased estimators, each with random numbers of its own.

    Attributes:
        program: a compiled function, method or module.
        situation: the call.
        seed: of the first; the second has the next one.
        long: steps of a judge for each of a candidate's.
        level: how often chance alone may say that two disagree.
        known: a gradient without error: given, or exact.
        first: else who takes a long run.
        second: who confirms it.
        others: who else may, the most unlike first.
        asked: whether the user has chosen.
        random: whether the gradient rests on an estimator at all.
    """

    program: Any
    situation: Situation
    seed: int
    long: int
    level: float
    known: Reference | None = None
    first: Candidate | None = None
    second: Candidate | None = None
    others: Iterator[Candidate] = field(default_factory=lambda: iter(()))
    asked: bool = False
    random: bool = True

    def run(self, repeats: int, progress: str = "") -> None:
        """The judges' steps for candidates of so many repeats, in all.

        Raises:
            Exception: of the judge that the user has asked for.
        """
        steps, fewer = (max(PILOT, times * repeats) for times in (self.long, min(self.long, CONFIRMING)))
        with nullcontext() if self.asked else quietly():
            if self.first is not None:
                changed = steadily([self.first], self.situation, steps, self.seed, progress)
                if self.asked and self.first.error is not None:
                    raise self.first.error
                if changed and not self.asked:
                    self.confirm(self.first)
            self.second = self.second or next(self.others, None)
            while self.second is not None:
                changed = steadily([self.second], self.situation, fewer, self.seed + 1, progress)
                if self.second.works and not changed:
                    break
                self.second = next(self.others, None)

    def confirm(self, judge: Candidate) -> None:
        """Find who may confirm a judge, if it rests on an estimator at all."""
        self.random = bool(set(at_work(judge, self.situation).values()) - {"plain"})
        self.second = None
        self.others = second_opinions(self.program, self.situation, judge) if self.random else iter(())

    def verdict(self) -> Verdict:
        """What the judges say after the steps so far."""
        own = self.known
        if own is None and self.first is not None and (self.first.works or self.asked):
            own = measured(self.first)
        if own is None or self.asked or not self.random:
            return Verdict(own)
        if self.second is None:
            return Verdict(own, "no second unbiased estimator works here to confirm it")
        return self._of_two(own, self.second)

    def _of_two(self, own: Reference, other: Candidate) -> Verdict:
        theirs, count = measured(other), len(other.seconds)
        apart = between(self.situation.targets, own, theirs)
        limits = Limits.of(self.situation.coordinates, count, self.level)
        if apart.worst > limits.chance:
            name, errors = "enumerate" if self.first is None else self.first.label, two_digits(apart.worst)
            words = f"{name!r} and {other.label!r} disagree by {errors} standard errors at {apart.place}"
            return Verdict(None, words)
        missed = apart.share(limits.seen)
        seen = f"would have shown a difference of {two_digits(100 * missed)}%"
        return Verdict(pooled(own, theirs), f"{theirs.text} agree, and {seen}", missed)


def appoint(
    wanted: Reference | Candidate | None, program: Any, situation: Situation, seed: int, *, long: int, level: float
) -> Panel:
    """Choose the judges of a call; compiles, and takes some steps.

    Args:
        wanted: what `asked` has made of ``reference=``.
        program: a compiled function, method or module.
        situation: the call.
        seed: of the judges.
        long: steps of a judge for each of a candidate's.
        level: how often chance alone may say that two disagree.
    """
    panel = Panel(program, situation, seed, long, level, asked=wanted is not None)
    if isinstance(wanted, Reference):
        panel.known = wanted
    elif wanted is not None:
        panel.known = _exact(panel, math.inf)[1] if wanted.label == "enumerate" else None
        panel.first = wanted if panel.known is None else None
    elif not situation.bounded:  # every number of samples has a bound of its own
        _choose(panel)
    return panel


def _choose(panel: Panel) -> None:
    """An exact gradient, or the most efficient of the unbiased estimators; and those that may confirm it."""
    judge, panel.known = _exact(panel, LARGEST)
    if panel.known is None:
        judge = panel.first = _most_efficient(panel)
    if judge is not None:
        panel.confirm(judge)


def _exact(panel: Panel, largest: float) -> tuple[Candidate | None, Reference | None]:
    """By enumeration, if that leaves nothing to chance and is not too large."""
    judge = enumerated(panel.program, panel.situation, largest)
    if judge is None:
        return None, None
    with quietly():
        extend([judge], panel.situation, 3, panel.seed)
    if not judge.works or any(bool((m.squares > _rounding(m.mean)).any()) for m in judge.moments):
        return judge, None  # it is refused, or other random numbers are in the program
    text = "exact, by enumeration" if at_work(judge, panel.situation) else "exact, there is no random choice"
    return judge, measured(judge, text, exact=True)


def _most_efficient(panel: Panel) -> Candidate | None:
    """Of the unbiased estimators that work, the one whose variance times labour is least."""
    candidates = first_opinions(panel.program, panel.situation)
    with quietly():
        steadily(candidates, panel.situation, PILOT, panel.seed)
    working = [candidate for candidate in candidates if candidate.works]
    return min(working, key=lambda each: each.variance * labour(each, panel.situation), default=None)


def steadily(judges: Sequence[Candidate], situation: Situation, steps: int, seed: int, progress: str = "") -> bool:
    """Steps of judges, as of `extend`, all by the same rules; whether they had to begin anew.

    Where a step finds that a cost jumps, the sites before it take other rules from then on.
    """
    before = [at_work(judge, situation) for judge in judges]
    extend(judges, situation, steps, seed, progress=progress)
    if before == [at_work(judge, situation) for judge in judges]:
        return False
    for judge in judges:
        judge.label = called(at_work(judge, situation))
        judge.forget()
    extend(judges, situation, steps, seed, progress=progress)
    return True


def _rounding(mean: Tensor) -> Tensor:
    """Squared deviations that are rounding of a float32, or of what is computed in another order."""
    return (1e-5 * mean.abs().max()).square() if mean.numel() else mean
