"""Prune: what no gradient needs and nobody reads."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from propc.ir.graph import PropagationGraph
from propc.ir.nodes.expand import Expand
from propc.ir.nodes.resample import Resample
from propc.ir.nodes.site import Site
from propc.ir.records import Route
from propc.passes.pipeline import Pass, register
from propc.propagators import Plain, plain
from propc.types import PlateKind


@register("prune")
@dataclass(frozen=True)
class Prune(Pass):
    """Let sites only draw where no gradient can leave them, and drop routes and nodes left over.

    A site's φ may depend on parameters only through a score-function site, which keeps all
    cotangents for itself: then nothing it could compute would reach anyone.
    """

    name: ClassVar[str] = "prune"

    def apply(self, graph: PropagationGraph) -> PropagationGraph:
        read = {ref for node in graph for ref in node.inputs}
        unread = [node.name for node in graph.of(Resample) if read.isdisjoint(node.made)]
        routes = tuple(route for route in graph.routes if route.source not in unread)
        graph = replace(graph.without(*unread), routes=routes)
        live = _live_sites(graph)
        idle = [
            replace(
                s,
                rule=plain(s.rule),
                estimator="plain",
                tangents=(),
                reason=s.reason if isinstance(s.rule, Plain) else "no gradient leaves it",
            )
            for s in graph.sites
            if s.name not in live and not _shapes_plate(graph, s)
        ]
        routes = tuple(r for route in graph.routes if (r := _restricted(route, live)).targets)
        graph = replace(graph.with_nodes(*idle), routes=routes)
        used = {ref.node for s in graph.sites for ref in s.tangents if ref is not None}
        return graph.without(*(e.name for e in graph.of(Expand) if e.name not in used))


def _shapes_plate(graph: PropagationGraph, site: Site) -> bool:
    """Whether a site makes the elements of a plate in a way of its own, so that nothing else can draw for it."""
    return bool(site.plate) and graph.plate(site.plate).kind != PlateKind.SAMPLES


def _live_sites(graph: PropagationGraph) -> set[str]:
    """Sites whose cotangent on φ reaches a parameter, and which receive one."""
    influence = graph.influence
    sends: dict[str, list[str]] = {}
    for route in graph.routes:
        if route.by_autograd:
            sends.setdefault(route.source, []).extend(target.site for target in route.targets)
    sent = {name for names in sends.values() for name in names}
    live: set[str] = set()
    passing = 0  # live sites and resample nodes that hand cotangents on, as a mask
    for node in graph:
        if not isinstance(node, (Site, Resample)):
            continue
        reach = influence.phi[node.name]
        wanted = bool(reach.leaves or reach.parents & passing)
        if isinstance(node, Resample):
            passes = wanted or not live.isdisjoint(sends.get(node.name, ()))
        elif passes := _is_live(node, wanted, node.name in sent):
            live.add(node.name)
            passes = node.rule is not None and (node.rule.passes_path or node.rule.weighs)
        if passes:
            passing |= 1 << influence.index[node.name]
    return live


def _is_live(site: Site, wanted: bool, sent: bool) -> bool:
    """Whether a gradient leaves a site, given that one is wanted by what is before it, and sent to it."""
    rule = site.rule
    if rule is None or isinstance(rule, Plain) or (rule.explores and not torch.is_grad_enabled()):
        return False
    return (wanted or site.spec.holds_parameters()) and (rule.passes_path or rule.weighs or rule.explores or sent)


def _restricted(route: Route, live: set[str]) -> Route:
    if not route.by_autograd:
        return route
    targets = tuple(t for t in route.targets if t.site in live)
    return route if len(targets) == len(route.targets) else replace(route, targets=targets)
