"""Route messages: which way each message goes, from costs to sites and between propagators."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from propc.errors import EstimatorError, message
from propc.ir.graph import PropagationGraph
from propc.ir.nodes.cost import Cost
from propc.ir.nodes.reduce import Reduce
from propc.ir.nodes.site import Site
from propc.ir.records import Route, Token
from propc.ir.rules import CostBaseline, NodeRule
from propc.passes.pipeline import Pass, register
from propc.passes.plates.cost_levels import is_bound, level_of, levels_of
from propc.passes.plates.elementwise_routes import along_of
from propc.passes.routing.propagator_routes import message_routes
from propc.passes.routing.shaped_routes import shaped_routes
from propc.propagators import Loss, Propagator
from propc.types import BATCH

Names = tuple[str, ...]


@register("route-messages")
@dataclass(frozen=True)
class RouteMessages(Pass):
    """Plan the routes; a cost reaches each site once, however many paths lead there.

    Tokens under the same baseline share a route, since they receive the same message.

    A node with a propagator sends to the target that a pass forces on it, else to the message's own, else to
    the propagator's `targets`, else to its parents (its children in the forward pass): the nearest nodes with
    a propagator, past those without.
    """

    name: ClassVar[str] = "route-messages"
    needed: ClassVar[bool] = True

    def apply(self, graph: PropagationGraph) -> PropagationGraph:
        return replace(graph, routes=(*self._from_costs(graph), *shaped_routes(graph), *message_routes(graph)))

    def _from_costs(self, graph: PropagationGraph) -> list[Route]:
        """Routes of the costs to the sites."""
        if not graph.costs:
            return []
        influence = graph.influence
        masks: dict[tuple[CostBaseline, int], int] = {}  # which sites take messages, by baseline and token
        for i, site in enumerate(graph.sites):
            for j, baseline in enumerate(site.rule.baselines if site.rule is not None else ()):
                masks[baseline, j] = masks.get((baseline, j), 0) | 1 << i
        tokens = {key: [Token(name, key[1]) for name in influence.sites] for key in masks}
        over = [_over(graph, site) for site in graph.sites]
        reduces = {node.inputs[0]: node for node in graph.of(Reduce) if node.of_cost}
        routes: list[Route] = []
        for cost in graph.of(Cost):
            reached = influence.values[cost.inputs[0]].any
            if not _is_cumulative(cost.rule):
                reached = influence.values[cost.inputs[0]].near
            levels = levels_of(cost, reduces)
            along = along_of(graph, cost)
            grouped: dict[tuple[str, CostBaseline, Names, Names, Names], list[Token]] = {}
            for key, mask in masks.items():
                for i in _bits(mask & reached):
                    site = graph.sites[i]
                    if not cost.shape and graph.batched(site):
                        raise _whole(cost, site)
                    source = level_of(levels, site) if len(levels) > 1 else cost.name
                    plates = _apart(graph, levels[-1], site)
                    grouped.setdefault((source, key[0], over[i], along(i), plates), []).append(tokens[key][i])
            routes += [
                Route(name, tuple(targets), baseline, baseline.sends, over=dims, along=apart)
                for (name, baseline, dims, apart, _), targets in grouped.items()
            ]
        return routes


def _apart(graph: PropagationGraph, end: Cost | Reduce, site: Site) -> tuple[str, ...]:
    """The plates of a site whose tokens meet only those of sites in the same: under a bound.

    Raises:
        EstimatorError: its draws share random numbers with other samples of the bound, or it weighs samples by
            each other.
    """
    if not is_bound(end):
        return ()
    shared = [name for name in site.plates if graph.plate(name).common and name != site.plate]
    in_rows = bool(site.plates) and site.rule is not None and site.rule.in_rows
    if shared or in_rows:
        what = f"draws from the same random numbers in the samples of {shared[0]!r}" if shared else "weighs rows apart"
        raise EstimatorError(
            message(
                f"estimator {site.estimator!r} {what}, and bound {end.inputs[0].node!r} is one number for all of them",
                "Use noise='independent' at the site before it." if shared else "Use 'rp', 'vimco' or 'lr' here.",
                at=f"site {site.name!r}",
                where=site.where,
            )
        )
    return site.plates


def _over(graph: PropagationGraph, site: Site) -> tuple[str, ...]:
    """Along which dimensions a baseline sees samples: those of the site's own plate, else of the batch."""
    rule = site.rule
    if rule is not None and rule.in_rows:
        return (*site.plates, BATCH) if graph.batched(site) or not site.plates else site.plates
    return (site.plate,) if site.plate else (BATCH,)


def _whole(cost: Cost, site: Site) -> EstimatorError:
    """The error of a site with a draw for each sample and a cost that is one number for all."""
    return EstimatorError(
        message(
            f"estimator {site.estimator!r} needs one cost for each sample; cost {cost.name!r} is a scalar",
            "Return it with shape [batch] and take its mean outside the compiled function.",
            at=f"site {site.name!r}",
            where=site.where,
        )
    )


def _is_cumulative(rule: NodeRule | None) -> bool:
    """Whether a cost is sent to all sites that influence it."""
    if isinstance(rule, Loss):
        return rule.cumulative
    parts = rule.named_parts() if isinstance(rule, Propagator) else {}
    return all(_is_cumulative(part) for part in parts.values() if isinstance(part, Propagator))


def _bits(mask: int) -> list[int]:
    found = []
    while mask:
        low = mask & -mask
        found.append(low.bit_length() - 1)
        mask ^= low
    return found
