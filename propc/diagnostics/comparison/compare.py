"""`propc.compare`: estimators beside each other on the user's own model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from propc.api.compile import compile
from propc.diagnostics.comparison.comparison import Comparison
from propc.diagnostics.comparison.figures import as_targets, limit, row
from propc.diagnostics.comparison.labels import labelled
from propc.diagnostics.comparison.reference import LONG, Reference, asked, find
from propc.diagnostics.comparison.steps import WARMUP, Candidate, Situation, draw_seeds, interleave, words
from propc.diagnostics.comparison.wrt import chosen, leaves_of
from propc.errors import EstimatorError, PropcTypeError, PropcValueError, message


def compare(
    program: Any,
    /,
    *args: Any,
    estimators: Iterable[Any] | Mapping[str, Any],
    wrt: Any = None,
    repeats: int = 100,
    reference: Any = None,
    seed: int = 0,
    **kwargs: Any,
) -> Comparison:
    """Bias, variance, time and efficiency of estimators on a program of yours.

    Each estimator takes `repeats` steps, in turns, after a few that do not count. A step is a call and a
    backward pass from the sum of the means of all returned costs; a gradient that does not arrive is zero.
    Every estimator starts with a state of its own and learns nothing.

    Nothing of yours is changed: not ``.grad``, not what estimators have learned, not buffers that the program
    writes into, and not the random number generators, as it draws from `seed` alone.

    Args:
        program: a function, an `nn.Module` object, or either compiled. It keeps its passes; sites that ask for an
            estimator of their own get it.
        *args, **kwargs: of a call. An argument whose name is taken here is passed by position.
        estimators: names, estimator objects, mappings from site-name patterns, functions of the site; or a
            mapping from labels to these.
        wrt: in which tensors: all that want a gradient (arguments, parameters, closed-over tensors), or one by its
            name, or a tensor, or a list of these. A module's or container's name means all in it.
        repeats: gradients for each estimator, two or more.
        reference: the gradient to compare with: tensors, as many as `wrt` means, also by name; or an
            estimator, for ten times as many steps as `repeats`. By default the exact one where every
            site can be enumerated, else ten times as many steps of the most efficient among unbiased ones.
        seed: of all random numbers. In a turn all estimators have the same.

    Returns:
        a `Comparison`. An estimator that cannot work on this program has a row with the error's text.

    Raises:
        EstimatorError: none of the estimators works; their errors.
        PropcValueError: an unknown estimator, option or `wrt`; a reference of another shape; too few repeats.
        PropcTypeError: a program or estimators of the wrong kind.
    """
    _check_repeats(repeats)
    compiled = as_compiled(program)
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


def as_compiled(program: Any) -> Any:
    """The program with the methods of a compiled one."""
    if isinstance(program, type):
        raise PropcTypeError(message(f"it needs a function or a module; got the class {program.__name__}"))
    return program if getattr(program, "_compiler", None) is not None else compile(program)


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
