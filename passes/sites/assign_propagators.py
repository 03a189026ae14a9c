"""Assign propagators: what every site does, from the user's choice of estimator."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from propc.errors import EstimatorError, PropcError, PropcTypeError, PropcValueError, PropcWarning, message, nearest
from propc.estimators import Estimator, SiteView, known_estimators, resolve
from propc.estimators.estimator import at_site
from propc.ir.graph import PropagationGraph
from propc.ir.nodes.cost import Cost
from propc.ir.nodes.opaque import Opaque
from propc.ir.nodes.resample import Resample
from propc.ir.nodes.site import Site
from propc.ir.records import LOG_MEAN_EXP, Jump
from propc.passes.pipeline import Pass, register
from propc.passes.sites.check_support import refuse_moving_support
from propc.propagators import Plain, Propagator, SitePropagator
from propc.util.patterns import matches, same_for_all

JumpProbe = Callable[[Mapping[str, bool], int | None], Sequence[Jump]]
"""The jumps that sites reach, given which pass their paths on, in program order, and the rows of the costs."""


@register("assign-propagators")
@dataclass(frozen=True)
class AssignPropagators(Pass):
    """Choose a propagator for every site.

    A site's own request (``propc.sample(..., estimator=)``, or a pass's) comes first, then
    `estimator`: a name, an `Estimator`, a mapping from site-name patterns to either (the first
    that matches; others get `infer`), or a function of the `SiteView` that gives one or None.

    Where gradients would go along paths, `jumps` looks for selections at which the cost jumps; sites before one choose
    again, knowing of it.
    """

    name: ClassVar[str] = "assign-propagators"
    needed: ClassVar[bool] = True
    estimator: Any = "infer"
    jumps: JumpProbe | None = field(default=None, repr=False, compare=False)

    def apply(self, graph: PropagationGraph) -> PropagationGraph:
        views = site_views(graph)
        chosen = choices(graph, self.estimator, views)
        if not chosen:
            return graph.with_nodes(*_only_values(graph, self.estimator, views))
        sites = [self._assigned(graph, site, views[site.name], chosen.get(site.name)) for site in graph.sites]
        sites = self._knowing_jumps(graph, sites, views, chosen)
        for site in sites:
            self._warn(graph, site, views[site.name])
        assigned = graph.with_nodes(*_with_donors(sites))
        refuse_moving_support(assigned)
        return assigned

    def _knowing_jumps(
        self, graph: PropagationGraph, sites: list[Site], views: dict[str, SiteView], chosen: Mapping[str, Estimator]
    ) -> list[Site]:
        """The sites with the jumps that their draws reach, and what they choose then.

        Those that reach one directly choose first: where they no longer pass a path on, no site before them reaches it.
        """
        known: dict[str, tuple[Jump, ...]] = {}
        directly = True
        while self.jumps is not None and any(map(_passes_path, sites)):
            found = self.jumps({site.name: _passes_path(site) for site in sites}, graph.batch)
            before = known
            known = {site.name: _reached(site, known.get(site.name, ()), found, directly) for site in sites}
            if known == before or not any(known.values()):
                break
            directly = False
            for i, site in enumerate(sites):
                if known[site.name] != before.get(site.name, ()):
                    views[site.name] = view = replace(views[site.name], jumps=known[site.name])
                    sites[i] = self._assigned(graph, graph.sites[i], view, chosen.get(site.name))
        return sites

    def _warn(self, graph: PropagationGraph, site: Site, view: SiteView) -> None:
        """What a pathwise gradient does not know of."""
        if not _passes_path(site) or _refused_behind(graph, view):
            return
        if view.jumps:
            _warn_jumps(view)
        elif view.rough and (self.jumps is None or graph.of(Opaque)):
            _warn_rough(view)

    def _assigned(self, graph: PropagationGraph, site: Site, view: SiteView, choice: Estimator | None) -> Site:
        if choice is None:
            return self._plain(site, view)
        if not view.costs:  # then nothing is known of the batch
            guess = replace(view, batch=view.spec.rows())
            rule = at_site(_asked(choice, guess)[0], guess)
            if rule.per_sample:  # it says what is wrong
                return _without_cost(graph, site)
        try:
            given, reason = _asked(choice, view)
        except EstimatorError:
            if not view.costs:
                _refuse_returned(graph, site)
            raise
        rule = at_site(given, view)
        return replace(site, rule=rule, estimator=_label(choice, rule), reason=reason, jumps=view.jumps)

    def _plain(self, site: Site, view: SiteView) -> Site:
        """A site that only draws, once; relaxed, if that is what its estimator does."""
        rule = _choice(self.estimator, site, view).without_gradient(view)
        once = Plain(relaxed=rule.relaxed if isinstance(rule, Plain) else None)
        return replace(site, rule=once, estimator="plain", reason="no parameter before it wants a gradient")


def _only_values(graph: PropagationGraph, estimator: Any, views: Mapping[str, SiteView]) -> list[Site]:
    """The sites of a call that wants no gradient at all: they draw as they do where one is wanted."""
    reason = "no parameter before it wants a gradient"
    found = []
    for site in graph.sites:
        rule = _choice(estimator, site, views[site.name]).without_gradient(views[site.name])
        found.append(replace(site, rule=rule, estimator=rule.name, reason=reason))
    return found


def choices(
    graph: PropagationGraph, estimator: Any, views: Mapping[str, SiteView] | None = None
) -> dict[str, Estimator]:
    """The estimator of every site before which a parameter wants a gradient.

    Raises:
        PropcValueError: an unknown name, or a pattern that matches no site.
        PropcTypeError: something that is no estimator.
    """
    if isinstance(estimator, Mapping):
        _check_patterns(graph, estimator)
    if views is None:
        views = site_views(graph) if is_function(estimator) else {}
    return {
        site.name: _choice(estimator, site, views.get(site.name))
        for site in graph.sites
        if graph.influence.phi[site.name].ancestors or site.spec.holds_parameters()
    }


def _choice(estimator: Any, site: Site, view: SiteView | None) -> Estimator:
    try:
        choice = site.requested
        if choice is None and isinstance(estimator, Mapping):
            choice = next((e for pattern, e in estimator.items() if matches(site.name, pattern)), None)
        elif choice is None and is_function(estimator):
            choice = _chosen(estimator, view)
        elif choice is None:
            choice = estimator
        return resolve("infer" if choice is None else choice)
    except PropcError as error:
        raise type(error)(message(str(error).rstrip("."), at=f"site {site.name!r}", where=site.where)) from None


def _chosen(function: Any, view: SiteView | None) -> Any:
    """What a function of the site chooses."""
    if view is None or ".." not in view.name:
        return function(view)
    return same_for_all(view.name, lambda name: function(replace(view, name=name)), "the function in estimator=")


def _check_patterns(graph: PropagationGraph, estimator: Mapping[str, Any]) -> None:
    names = [site.name for site in graph.sites]
    for pattern in estimator:
        if not any(matches(name, pattern) for name in names):
            raise PropcValueError(
                message(
                    f"the pattern {pattern!r} in estimator= matches no site of {graph.name!r}; a site in a branch "
                    "that was not taken is not in the graph",
                    nearest(pattern, names),
                )
            )


def site_views(graph: PropagationGraph) -> dict[str, SiteView]:
    """What estimators get to know of each site."""
    influence = graph.influence
    costs: dict[str, list[str]] = {name: [] for name in influence.draws}
    blocked: dict[str, list[str]] = {name: [] for name in influence.draws}
    rough: dict[str, list[str]] = {name: [] for name in influence.draws}
    for cost in (*graph.of(Cost), *graph.of(Resample)):
        reach = influence.at(cost)
        for table, mask in ((costs, reach.any), (blocked, reach.any & ~reach.smooth), (rough, reach.rough)):
            for name in influence.named(mask):
                table[name].append(cost.name)
    followed = 0  # the sites that another one depends on
    for name in influence.sites:
        followed |= influence.phi[name].any
    bounds = {cost.name for cost in graph.of(Cost) if cost.how == LOG_MEAN_EXP}
    return {
        site.name: SiteView(
            site.name,
            site.spec,
            site.shape,
            site.where,
            graph.batch,
            tuple(costs[site.name]),
            tuple(blocked[site.name]),
            tuple(rough[site.name]),
            tuple(graph[ref.node].outputs[ref.port] for ref in site.inputs),
            not influence.phi[site.name].any and not followed >> influence.index[site.name] & 1,
            tuple(name for name in costs[site.name] if name in bounds),
        )
        for site in graph.sites
    }


def _asked(choice: Estimator, view: SiteView) -> tuple[Propagator, str]:
    """The rule that an estimator, perhaps a user's, gives, and why.

    Raises:
        PropcTypeError: it gives something else.
    """
    found = choice.propagator(view)
    if isinstance(found, tuple) and len(found) == 2 and isinstance(found[0], Propagator):
        return found
    raise PropcTypeError(
        message(
            f"the estimator {choice.name!r} ({type(choice).__qualname__}) gives {found!r} for its rule",
            "Let its method propagator(site) return a propagator and the reason, such as (Pathwise(), 'asked for').",
            at=f"site {view.name!r}",
            where=view.where,
        )
    )


def _label(choice: Estimator, rule: SitePropagator) -> str:
    """The estimator at work: what `infer` and its like have chosen, else the user's choice."""
    return rule.name if rule.name in known_estimators() and not choice.keeps_name else choice.name


def is_function(choice: Any) -> bool:
    """Whether `estimator=` is a function of the site."""
    return callable(choice) and not isinstance(choice, (str, type, Estimator))


def _without_cost(graph: PropagationGraph, site: Site) -> Site:
    """A site that needs costs and influences none: an error if it influences what is returned."""
    _refuse_returned(graph, site)
    return replace(site, rule=Plain(), estimator="plain", reason="no cost after it")


def _refuse_returned(graph: PropagationGraph, site: Site) -> None:
    """Say what is wrong with returned values that a site influences, and that are no costs."""
    returned = [ref for ref in graph.output.inputs if graph.influence.reaches(site.name, ref)]
    if returned:
        kinds = [graph[ref.node].outputs[ref.port] for ref in returned]
        whole = [not (kind.dtype.is_floating_point or kind.dtype.is_complex) for kind in kinds]
        convert = any(w and len(kind.shape) <= 1 for w, kind in zip(whole, kinds))
        raise site.error(
            "its estimator needs costs of shape [batch], and it influences none; returned are "
            + ", ".join(map(str, kinds)),
            "A cost is floating point: convert the returned one by .float()."
            if convert
            else "Sum the returned cost over everything but the batch"
            + (", or use estimator='rp'." if site.spec.has_rsample else "."),
            PropcValueError,
        )


def _passes_path(site: Site) -> bool:
    return site.rule is not None and site.rule.passes_path


def _refused_behind(graph: PropagationGraph, view: SiteView) -> bool:
    """Whether a cost has no path from a resample node behind the site, which says so itself."""
    influence = graph.influence
    nodes = sum(1 << influence.index[name] for name in view.costs if isinstance(graph[name], Resample))
    return any((reach := influence.at(cost)).any & ~reach.smooth & nodes for cost in graph.costs)


def _reached(site: Site, known: tuple[Jump, ...], found: Iterable[Jump], directly: bool) -> tuple[Jump, ...]:
    """The jumps that a site is known to reach, and those found that it reaches, `directly` or at all."""
    places = [jump.where for jump in known]
    more = (jump for jump in found if site.name in (jump.near if directly else jump.far))
    return (*known, *(jump for jump in more if jump.where not in places))


def _warn_jumps(view: SiteView) -> None:
    jump = max(view.jumps, key=lambda jump: jump.size)
    by = f" by {jump.size:.3g}" if jump.size else ""
    others = f", and at {len(view.jumps) - 1} other lines" if len(view.jumps) > 1 else ""
    warnings.warn(
        message(
            f"it also reaches {', '.join(map(repr, view.costs))} through a comparison, rounding or an integer "
            f"({jump.operation!r}, {jump.where}) where what follows jumps{by}{others}; a pathwise gradient knows "
            "nothing of jumps",
            "Use 'lr' there, as 'infer' does, or smooth the condition: torch.sigmoid((x - limit) / width) in place of "
            "x > limit.",
            at=f"site {view.name!r}",
            where=view.where,
        ),
        PropcWarning,
        stacklevel=2,
    )


def _warn_rough(view: SiteView) -> None:
    warnings.warn(
        message(
            f"it also reaches {', '.join(map(repr, view.rough))} through a comparison, rounding or an integer, of "
            "which a pathwise gradient knows nothing",
            "Use 'lr' if that step matters for the cost.",
            at=f"site {view.name!r}",
            where=view.where,
        ),
        PropcWarning,
        stacklevel=2,
    )


def _with_donors(sites: list[Site]) -> list[Site]:
    """With k_interval > 1, let sites between reuse the weights of the next site that computes them."""
    done: list[Site] = []
    donor: Site | None = None
    since = 0
    for site in reversed(sites):
        rule = site.rule
        if rule is not None and rule.weights_interval > 1:
            fits = donor is not None and donor.rule == rule and donor.shape == site.shape
            if fits and donor is not None and since < rule.weights_interval - 1:
                since += 1
                site = replace(site, rule=rule.with_donor(donor.name))
            else:
                donor, since = site, 0
        done.append(site)
    return done[::-1]
