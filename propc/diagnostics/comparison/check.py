"""`propc.check`: one estimator on the user's own program, for tests: it passes, or an error has the coordinates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from propc.diagnostics.comparison.compare import situated
from propc.diagnostics.comparison.comparison import Row
from propc.diagnostics.comparison.distance import Difference, differences
from propc.diagnostics.comparison.figures import as_targets
from propc.diagnostics.comparison.labels import label
from propc.diagnostics.comparison.panel import appoint
from propc.diagnostics.comparison.reference import asked, measured
from propc.diagnostics.comparison.repeats import Repeats
from propc.diagnostics.comparison.steps import Candidate, Situation, mean_cost
from propc.diagnostics.comparison.trial import Outcome, tried
from propc.errors import BiasError, EstimatorError, NonFiniteError, PropcValueError, message
from propc.estimators import Estimator
from propc.propagators import Propagator

# How often chance alone may fail a check. A test of the usual level would fail one in a hundred that are right; this
# one takes (3.9 + 2.3)² / (2.6 + 2.3)² = 1.6 times as many gradients of one coordinate.
LEVEL = 1e-4
LONG = 1  # steps of a judge for each of the candidate's: of one candidate the least in all
SHOWN = 10  # coordinates that an error lists


def checked(
    compiled: Any,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    estimator: Any,
    reference: Any,
    wrt: Any,
    repeats: Any,
    seed: int,
) -> Row:
    """What `propc.check` gives, of a compiled program."""
    wanted = Repeats.of(repeats)
    choice = compiled._compiler().options.estimator if estimator is None else estimator
    candidate = Candidate(label(choice), compiled.with_estimator(choice))
    try:
        situation = situated([candidate], compiled, wrt, args, kwargs)
        judge = asked(_by_hand(reference, situation), compiled, situation)
        with situation.undisturbed():
            panel = appoint(judge, compiled, situation, seed + 1, long=LONG, level=LEVEL)
            found = tried([candidate], panel, wanted, seed)
    except EstimatorError:
        if candidate.error is not None:  # of one estimator its own error says more
            raise candidate.error from None
        raise
    return _passed(candidate, situation, wanted, found)


def _by_hand(reference: Any, situation: Situation) -> Any:
    """The gradients of an expected cost that the user gave as a function of the call's arguments; else what was given.

    Raises:
        PropcValueError: the function's value does not depend on what wants a gradient.
    """
    if not callable(reference) or isinstance(reference, (type, Estimator, Propagator)):
        return reference
    targets = list(situation.targets.values())
    with torch.enable_grad():
        cost = mean_cost(reference(*situation.args, **situation.kwargs))
        if not cost.requires_grad:
            finding = f"the expected cost that reference={label(reference)} returns has no gradient"
            raise PropcValueError(message(finding, "Compute it from the arguments, or give the gradient as a tensor."))
        gradients = torch.autograd.grad(cost, targets, allow_unused=True, retain_graph=situation.keeps)
    return [torch.zeros_like(t) if g is None else g for t, g in zip(targets, gradients)]


def _passed(candidate: Candidate, situation: Situation, wanted: Repeats, found: Outcome) -> Row:
    """The record of a candidate that is not biased, as far as can be seen."""
    (row,) = found.rows
    known, agreement = found.verdict.reference, found.verdict.agreement
    at = f"estimator {candidate.label!r}"
    if candidate.broken:
        raise NonFiniteError(message(row["error"], "See where with propc.compile(..., validate=True).", at=at))
    if known is None:
        why = agreement or "no unbiased estimator works here"
        raise PropcValueError(message(f"no reference to check with: {why}", _GIVE, at=at))
    if row["significant"]:
        differ = differences(situation.targets, measured(candidate), known)
        raise _biased(list(differ), found, at, "; ".join(filter(None, (known.text, agreement))))
    if wanted.share and row["missed_share"] > wanted.share:
        raise PropcValueError(message(wanted.short_of(found.repeats, row), _MORE, at=at))
    return row | {
        "repeats": found.repeats,
        "limit": found.limits.chance,
        "reference": known.text,
        "agreement": agreement,
        "gradient": as_targets(known.mean, situation),
    }


_GIVE = "Give reference=: the gradient, a function that returns the expected cost, or an estimator."
_MORE = "Take a larger batch, ask for less, or give repeats= as a number."


def _biased(differ: Sequence[Difference], found: Outcome, at: str, reference: str) -> BiasError:
    """The error that names each coordinate beyond the limit."""
    bound, count = found.limits.chance, sum(off.mean.numel() for off in differ)
    beyond = [(off, index) for off in differ for index in off.beyond(bound)]
    where = f" in {len(beyond)} of {count} coordinates" if count > 1 else ""
    lines = [
        message(f"the gradient is biased{where}, beyond {bound:.1f} standard errors of {found.repeats} steps", at=at),
        *(_line(off, index) for off, index in beyond[:SHOWN]),
        *([f"and {len(beyond) - SHOWN} more"] if len(beyond) > SHOWN else []),
        f"reference: {reference}",
    ]
    error = BiasError("\n  ".join(lines))
    error.coordinates = tuple(off.coordinate(index) for off, index in beyond)
    return error


def _line(off: Difference, index: int) -> str:
    mean, other, error, far = (float(x.flatten()[index]) for x in (off.mean, off.other, off.error, off.in_errors))
    return f"{off.coordinate(index)}: {mean:.5g}, reference {other:.5g}; {far:.3g} standard errors of {error:.2g}"
