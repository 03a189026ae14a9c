"""Who may judge: a program under estimators that are unbiased at its sites, and unlike each other."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from propc.diagnostics.comparison.labels import label
from propc.diagnostics.comparison.steps import Candidate, Situation
from propc.distributions.support import places
from propc.errors import PropcError
from propc.estimators import Enumerate, Estimator, LeaveOneOutRatio, LikelihoodRatio, MeasureValued, Pathwise, SiteView
from propc.ir.graph import PropagationGraph
from propc.ir.nodes.site import Site
from propc.passes.pipeline import Pass
from propc.passes.sites.assign_propagators import site_views
from propc.propagators import Plain, Propagator

LARGEST = 3 * 10**7  # elements of all values of a program that is enumerated without being asked: 240 MB in float64
# Elements that an operation of torch's adds up in the time that calling it takes: some 5 µs at 2 · 10⁹ a second.
CALL = 10**4
# A second opinion may be as many times as laborious as the first: of a chain of H sites alternatives are H² of them.
PATIENCE = 10
FEW = 16  # elements of all sites of which alternatives are tried: each of them takes a run or two of what is behind it


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


@dataclass(frozen=True)
class _Among(Estimator):
    """What a function chooses for each site, and chooses again where a jump is found."""

    name: ClassVar[str] = "among"
    choose: Callable[[SiteView], Estimator] = field(compare=False)
    names: dict[str, str] = field(compare=False)  # what people call the choices, by site

    def propagator(self, site: SiteView) -> tuple[Propagator, str]:
        estimator = self.choose(site)
        self.names[site.name] = label(estimator)
        return estimator.propagator(site)


def under(
    estimator: Any, program: Any, situation: Situation, *passes: Pass, largest: float = LARGEST
) -> Candidate | None:
    """The program with all sites under one estimator, or under what a function of the site chooses among some.

    None where that cannot work, or would be too large.
    """
    others, names = program._compiler().options.passes, dict[str, str]()
    choice = _Among(estimator, names) if callable(estimator) else estimator
    compiled = program._recompiled(estimator=choice, passes=(*others, _Alike(), *passes))
    try:
        with quietly():
            graph = compiled.graph(*situation.args, **situation.kwargs)
    except Exception:
        return None
    if _size(graph) > largest:
        return None
    made = Candidate("", compiled, names)
    made.label = called(at_work(made, situation))
    return made


def enumerated(program: Any, situation: Situation, largest: float) -> Candidate | None:
    """The program with all sites enumerated; None where one cannot be."""
    found = under("enumerate", program, situation, _Listed(), largest=largest)
    return None if found is None or set(at_work(found, situation).values()) - {"enumerate"} else found


def first_opinions(program: Any, situation: Situation) -> list[Candidate]:
    """The program under what is unbiased on it: enumeration of what can be, paths or scores, scores alone."""
    tried = [under(estimator, program, situation) for estimator in ("enumerate", surely, "lr")]
    return [candidate for candidate in tried if candidate is not None]


def second_opinions(program: Any, situation: Situation, first: Candidate) -> Iterator[Candidate]:
    """The program with each site under another unbiased estimator than the first has there, the most unlike first."""
    taken = at_work(first, situation)
    most = PATIENCE * labour(first, situation)
    views = site_views(_graph(first, situation)).values()
    few = sum(places(view.spec, batched=view.batched) for view in views) <= FEW
    for alternatives in (True, False) if few else (False,):  # not every site goes with alternatives of another
        candidate = under(_other_than(taken, alternatives), program, situation)
        if candidate is None or labour(candidate, situation) > most:
            continue
        if any(name != taken[site] for site, name in at_work(candidate, situation).items() if site in taken):
            yield candidate


def surely(site: SiteView) -> Estimator:
    """An unbiased estimator for a site: `rp` only where no jump can be on the way to a cost."""
    return next(_unbiased(site))


def _unbiased(site: SiteView, *, alternatives: bool = True) -> Iterator[Estimator]:
    """Estimators that are unbiased at a site, if they can work there: by paths, scores, alternatives, other scores."""
    if site.spec.has_rsample and not (site.blocked or site.rough or site.jumps):
        yield Pathwise()
    yield LikelihoodRatio() if site.batched and site.batch != 1 else LeaveOneOutRatio()
    if alternatives:
        yield MeasureValued()
    yield LikelihoodRatio(None)


def _other_than(taken: Mapping[str, str], alternatives: bool) -> Callable[[SiteView], Estimator]:
    """An estimator for each site that is not the one taken there; where there is none, an unbiased one all the same."""

    def choose(site: SiteView) -> Estimator:
        for estimator in _unbiased(site, alternatives=alternatives):
            if label(estimator) != taken.get(site.name):
                try:
                    estimator.propagator(site)
                except PropcError:
                    continue
                return estimator
        return surely(site)

    return choose


def at_work(candidate: Candidate, situation: Situation) -> dict[str, str]:
    """What people call the estimator of each of a candidate's sites."""
    sites = _graph(candidate, situation).sites
    return {s.name: s.estimator if _draws(s) else candidate.chosen.get(s.name, s.estimator) for s in sites}


def called(estimators: Mapping[str, str]) -> str:
    """What people call a judge with these estimators at its sites."""
    return " and ".join(sorted(set(estimators.values()) - {"plain"})) or "the program"


def labour(candidate: Candidate, situation: Situation) -> int:
    """What a step takes, in elements: a clock would choose another judge each time."""
    graph = _graph(candidate, situation)
    return sum(CALL + math.prod((*graph.sizes(node.plates), *kind.shape)) for node in graph for kind in node.outputs)


@contextmanager
def quietly() -> Iterator[None]:
    """Without warnings: what the user did not ask for need not be told."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _graph(candidate: Candidate, situation: Situation) -> PropagationGraph:
    graph: PropagationGraph = candidate.program.graph(*situation.args, **situation.kwargs)
    return graph


def _draws(site: Site) -> bool:
    return isinstance(site.rule, Plain)


def _size(graph: PropagationGraph) -> int:
    """Elements of all values in plates."""
    return sum(
        math.prod((*graph.sizes(node.plates), *kind.shape)) for node in graph if node.plates for kind in node.outputs
    )
