"""What the mean gradients of estimators are compared with: exact, a long run, or what the user gives."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import torch
from torch import Tensor

from propc.diagnostics.comparison.labels import label
from propc.diagnostics.comparison.steps import WARMUP, Candidate, Situation, interleave
from propc.errors import PropcTypeError, PropcValueError, message
from propc.estimators import Enumerate, SiteView
from propc.ir.graph import PropagationGraph
from propc.ir.nodes.site import Site
from propc.passes.pipeline import Pass
from propc.passes.sites.assign_propagators import site_views
from propc.propagators import Plain

# Times as many steps as the estimators take: the error of a difference is then a twentieth larger than with an exact
# reference, √(1 + 1/10).
LONG = 10
# Steps after which the most efficient of the unbiased estimators is chosen: a variance is then known to a third,
# √(2/19), enough to tell those that differ twofold.
PILOT = 20
LARGEST = 3 * 10**7  # elements of all values of a program that is enumerated without being asked: 240 MB in float64


@dataclass(frozen=True)
class Reference:
    """A gradient to compare with.

    Attributes:
        text: where it comes from.
        mean: of each target, in float64.
        error: the squared standard error of each coordinate.
    """

    text: str
    mean: tuple[Tensor, ...]
    error: tuple[Tensor, ...]


@dataclass(frozen=True)
class _Alike(Pass):
    """Sites do not ask for estimators of their own, which may be biased."""

    name = "all-sites-alike"

    def apply(self, graph: PropagationGraph) -> PropagationGraph:
        return graph.with_nodes(*(replace(site, requested=None) for site in graph.sites))


@dataclass(frozen=True)
class _Listed(Pass):
    """Sites without a parameter before them are enumerated too, where they can be."""

    name = "all-sites-listed"
    after = "assign-propagators"

    def apply(self, graph: PropagationGraph) -> PropagationGraph:
        views = site_views(graph)
        only_draw = [(site, Enumerate().without_gradient(views[site.name])) for site in graph.sites if _draws(site)]
        return graph.with_nodes(*(replace(site, rule=rule, estimator=rule.name) for site, rule in only_draw))


def asked(given: Any, program: Any, situation: Situation) -> Reference | Candidate | None:
    """What `reference=` means: gradients, a candidate for a long run, or None where it says nothing.

    Args:
        given: as of `propc.compare`.
        program: a compiled function, method or module.
        situation: the call.

    Raises:
        PropcValueError: gradients of another shape or number; an unknown estimator.
    """
    if given is None:
        return None
    return _given(given, situation) if _is_gradient(given) else Candidate(label(given), program.with_estimator(given))


def find(wanted: Candidate | None, program: Any, situation: Situation, seeds: Sequence[int]) -> Reference | None:
    """The reference for a call; None where no unbiased estimator works, and for a bound, unless one is wanted.

    Args:
        wanted: the candidate for a long run, or None to choose.
        program: a compiled function, method or module.
        situation: the call.
        seeds: for the steps of a long run, and `WARMUP` twice.
    """
    if wanted is None and situation.bounded:
        return None  # every number of samples has a bound of its own
    if wanted is None:
        return _exact(program, situation, seeds, LARGEST) or _unbiased(program, situation, seeds)
    exact = _exact(program, situation, seeds) if wanted.label == "enumerate" else None
    if exact is not None:
        return exact
    interleave([wanted], situation, seeds[WARMUP:])
    if wanted.error is not None:
        raise wanted.error
    return _measured(wanted)


def _exact(program: Any, situation: Situation, seeds: Sequence[int], largest: float = math.inf) -> Reference | None:
    """By enumeration, if that leaves nothing to chance and is not too large."""
    candidate = _candidate(program, "enumerate", situation, _Listed(), largest=largest)
    if candidate is None or _at_work(candidate, situation) - {"enumerate"}:
        return None
    _run([candidate], situation, seeds[: WARMUP + 3])
    if candidate.error is not None or any(bool((m.squares > _rounding(m.mean)).any()) for m in candidate.moments):
        return None  # other random numbers are in the program
    text = "exact, by enumeration" if _at_work(candidate, situation) else "exact, there is no random choice"
    return Reference(text, *_figures(candidate, exact=True))


def _unbiased(program: Any, situation: Situation, seeds: Sequence[int]) -> Reference | None:
    """A long run of the most efficient of the unbiased estimators."""
    tried = [_candidate(program, estimator, situation) for estimator in ("enumerate", surely, "lr")]
    candidates = [candidate for candidate in tried if candidate is not None]
    _run(candidates, situation, seeds[: WARMUP + PILOT])
    working = [c for c in candidates if c.error is None and not c.broken]
    if not working:
        return None
    best = min(working, key=lambda candidate: candidate.variance * median(candidate.seconds))
    _run([best], situation, seeds[WARMUP + PILOT :])
    return _measured(best) if best.error is None and not best.broken else None


def surely(site: SiteView) -> str:
    """An unbiased estimator for a site: `rp` only where no jump can be on the way to a cost."""
    if site.spec.has_rsample and not site.blocked and not site.rough:
        return "rp"
    return "lr" if site.batched and site.batch != 1 else "rloo"


def _candidate(
    program: Any, estimator: Any, situation: Situation, *passes: Pass, largest: float = LARGEST
) -> Candidate | None:
    """The program with all sites under one estimator; None where that cannot work, or would be too large."""
    others = program._compiler().options.passes
    try:
        compiled = program._recompiled(estimator=estimator, passes=(*others, _Alike(), *passes))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            graph = compiled.graph(*situation.args, **situation.kwargs)
    except Exception:
        return None
    if _size(graph) > largest:
        return None
    made = Candidate("", compiled)
    made.label = " and ".join(sorted(_at_work(made, situation) - {"plain"})) or "the program"
    return made


def _draws(site: Site) -> bool:
    return isinstance(site.rule, Plain)


def _size(graph: PropagationGraph) -> int:
    """Elements of all values in plates."""
    return sum(
        math.prod((*graph.sizes(node.plates), *kind.shape)) for node in graph if node.plates for kind in node.outputs
    )


def _at_work(candidate: Candidate, situation: Situation) -> set[str]:
    """The estimators of a candidate's sites."""
    return {site.estimator for site in candidate.program.graph(*situation.args, **situation.kwargs).sites}


def _run(candidates: Sequence[Candidate], situation: Situation, seeds: Sequence[int]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        interleave(candidates, situation, seeds)


def _measured(candidate: Candidate) -> Reference:
    count = candidate.moments[0].count
    return Reference(f"{count} steps of {candidate.label}", *_figures(candidate, exact=False))


def _figures(candidate: Candidate, *, exact: bool) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    means = tuple(m.mean for m in candidate.moments)
    errors = (torch.zeros_like(m.mean) if exact else m.variance / m.count for m in candidate.moments)
    return means, tuple(errors)


def _rounding(mean: Tensor) -> Tensor:
    """Squared deviations that are rounding of a float32, or of what is computed in another order."""
    return (1e-5 * mean.abs().max()).square() if mean.numel() else mean


def _is_gradient(given: Any) -> bool:
    if isinstance(given, Mapping):
        return all(isinstance(value, (Tensor, int, float)) for value in given.values())
    if isinstance(given, (list, tuple)):
        return all(isinstance(value, (Tensor, int, float)) for value in given)
    return isinstance(given, (Tensor, int, float))


def _given(given: Any, situation: Situation) -> Reference:
    """Gradients that the user gave: one for each target.

    Raises:
        PropcValueError: of another shape, or not for all targets.
    """
    names = list(situation.targets)
    if not isinstance(given, (Mapping, list, tuple)):
        given = [given]
    values = list(given) if not isinstance(given, Mapping) else [given.get(name) for name in names]
    if len(values) != len(names) or any(value is None for value in values) or len(given) != len(names):
        raise PropcValueError(
            message(
                f"reference= gives {len(given)} gradients; wanted are those of {', '.join(map(repr, names))}",
                "Give a tensor for each, or a mapping from these names.",
            )
        )
    means = tuple(_fitting(value, name, situation.targets[name]) for name, value in zip(names, values))
    return Reference("given", means, tuple(map(torch.zeros_like, means)))


def _fitting(value: Any, name: str, target: Tensor) -> Tensor:
    made = torch.as_tensor(value, device=target.device).detach()
    if made.shape != target.shape:
        raise PropcValueError(
            message(f"reference= gives shape {list(made.shape)} for {name!r}, whose shape is {list(target.shape)}")
        )
    if target.is_complex():
        return torch.view_as_real(made.to(torch.complex128))
    if made.is_complex():
        raise PropcTypeError(message(f"reference= gives a complex gradient for {name!r}, which is real"))
    return made.double()
