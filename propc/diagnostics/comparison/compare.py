"""`propc.compare`: estimators beside each other on the user's own model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from propc.diagnostics.comparison.comparison import Comparison
from propc.diagnostics.comparison.figures import as_targets, limit, row
from propc.diagnostics.comparison.labels import labelled
from propc.diagnostics.comparison.reference import LONG, Reference, asked, find
from propc.diagnostics.comparison.steps import WARMUP, Candidate, Situation, draw_seeds, interleave, words
from propc.diagnostics.comparison.wrt import chosen, leaves_of
from propc.errors import EstimatorError, PropcValueError, message


def compared(
    compiled: Any,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    estimators: Iterable[Any] | Mapping[str, Any],
    wrt: Any,
    repeats: int,
    reference: Any,
    seed: int,
) -> Comparison:
    """What `propc.compare` gives, of a compiled program."""
    _check_repeats(repeats)
    candidates = [Candidate(name, compiled.with_estimator(each)) for name, each in labelled(estimators).items()]
    situation = _situation(candidates, compiled, wrt, args, kwargs)
    wanted = asked(reference, compiled, situation)
    seeds = draw_seeds(LONG * repeats + 2 * WARMUP, seed)
    with situation.undisturbed():
        interleave(candidates, situation, seeds[: WARMUP + repeats])
        _require_one(candidates)
        others = draw_seeds(len(seeds), seed + 1)
        known = wanted if isinstance(wanted, Reference) else find(wanted, compiled, situation, others)
    coordinates = sum(target.numel() for target in situation.targets.values())
    bound = limit(coordinates * len(candidates), repeats)
    return Comparison(
        compiled._compiler().name,
        tuple(situation.targets),
        repeats,
        "" if known is None else known.text,
        None if known is None else as_targets(known.mean, situation),
        bound,
        coordinates,
        [row(candidate, known, situation, bound) for candidate in candidates],
    )


def _check_repeats(repeats: Any) -> None:
    if isinstance(repeats, bool) or not isinstance(repeats, int) or repeats < 2:
        raise PropcValueError(message(f"repeats={repeats!r}", "A variance needs two or more."))


def _situation(
    candidates: Sequence[Candidate], compiled: Any, wrt: Any, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> Situation:
    """Compile every candidate's graph; the first that works tells what a call reads."""
    graphs = []
    for candidate in candidates:
        try:
            graphs.append(candidate.program.graph(*args, **kwargs))
        except Exception as error:
            candidate.error = error
    _require_one(candidates)
    leaves = leaves_of(graphs[0], compiled._owner(), args, kwargs)
    return Situation.of(graphs[0], leaves, chosen(leaves, wrt), args, kwargs)


def _require_one(candidates: Sequence[Candidate]) -> None:
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
