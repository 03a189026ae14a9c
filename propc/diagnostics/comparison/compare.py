"""`propc.compare`: estimators beside each other on the user's own model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from propc.diagnostics.comparison.comparison import Comparison, Row
from propc.diagnostics.comparison.figures import as_targets
from propc.diagnostics.comparison.labels import labelled
from propc.diagnostics.comparison.panel import appoint
from propc.diagnostics.comparison.power import LEVEL
from propc.diagnostics.comparison.reference import asked
from propc.diagnostics.comparison.repeats import Repeats
from propc.diagnostics.comparison.steps import Candidate, Situation
from propc.diagnostics.comparison.trial import Outcome, require_one, tried
from propc.diagnostics.comparison.wrt import chosen, leaves_of

# Times as many steps as the estimators take: the error of a difference is then a twentieth larger than with an exact
# reference, √(1 + 1/10).
LONG = 10


def compared(
    compiled: Any,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    estimators: Iterable[Any] | Mapping[str, Any],
    wrt: Any,
    repeats: Any,
    reference: Any,
    seed: int,
) -> Comparison:
    """What `propc.compare` gives, of a compiled program."""
    wanted = Repeats.of(repeats)
    candidates = [Candidate(name, compiled.with_estimator(each)) for name, each in labelled(estimators).items()]
    situation = situated(candidates, compiled, wrt, args, kwargs)
    judge = asked(reference, compiled, situation)
    with situation.undisturbed():
        panel = appoint(judge, compiled, situation, seed + 1, long=LONG, level=LEVEL)
        found = tried(candidates, panel, wanted, seed)
    known = found.verdict.reference
    return Comparison(
        compiled._compiler().name,
        tuple(situation.targets),
        found.repeats,
        "" if known is None else known.text,
        None if known is None else as_targets(known.mean, situation),
        found.limits.chance,
        situation.coordinates,
        [_told(row, wanted, found) for row in found.rows],
        found.verdict.agreement,
    )


def situated(
    candidates: Sequence[Candidate], compiled: Any, wrt: Any, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> Situation:
    """Compile every candidate's graph; the first that works tells what a call reads."""
    graphs = []
    for candidate in candidates:
        try:
            graphs.append(candidate.program.graph(*args, **kwargs))
        except Exception as error:
            candidate.error = error
    require_one(candidates)
    leaves = leaves_of(graphs[0], compiled._owner(), args, kwargs)
    return Situation.of(graphs[0], leaves, chosen(leaves, wrt), args, kwargs)


def _told(row: Row, wanted: Repeats, found: Outcome) -> Row:
    """A record that says so where a bias of the size asked for would not have been seen."""
    if not wanted.share or not row["missed_share"] > wanted.share:
        return row
    return row | {"error": wanted.short_of(found.repeats, row)}
