"""Prune: what no gradient needs and nobody reads."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from propc.graph import PropagationGraph
from propc.ir import Expand, Route
from propc.passes.base import Pass, register
from propc.propagators import Plain


@register("prune")
@dataclass(frozen=True)
class Prune(Pass):
    """Let sites only draw where no gradient can leave them, and drop routes and nodes left over.

    A site's φ may depend on parameters only through a score-function site, which keeps all
    cotangents for itself: then nothing it could compute would reach anyone.
    """

    name: ClassVar[str] = "prune"

    def apply(self, graph: PropagationGraph) -> PropagationGraph:
        live = _live_sites(graph)
        idle = [
            replace(
                s,
                rule=Plain(),
                estimator="plain",
                tangents=(),
                reason=s.reason if isinstance(s.rule, Plain) else "no gradient leaves it",
            )
            for s in graph.sites
            if s.name not in live
        ]
        routes = [_restricted(route, live) for route in graph.routes]
        graph = replace(graph.with_nodes(*idle), routes=tuple(r for r in routes if r.targets))
        used = {ref.node for s in graph.sites for ref in s.tangents if ref is not None}
        return graph.without(*(e.name for e in graph.of(Expand) if e.name not in used))


def _live_sites(graph: PropagationGraph) -> set[str]:
    """Sites whose cotangent on φ reaches a parameter, and which receive one."""
    influence = graph.influence
    sent = {target.site for route in graph.routes if route.by_autograd for target in route.targets}
    live: dict[str, bool] = {}
    passing = 0  # live sites that hand cotangents on, as a mask
    for i, site in enumerate(graph.sites):
        rule, reach = site.rule, influence.phi[site.name]
        wanted = bool(reach.leaves or reach.parents & passing or site.spec.holds_parameters())
        gets = rule is not None and (rule.passes_path or site.name in sent)
        live[site.name] = wanted and gets and not isinstance(rule, Plain)
        if live[site.name] and rule is not None and rule.passes_path:
            passing |= 1 << i
    return {name for name, alive in live.items() if alive}


def _restricted(route: Route, live: set[str]) -> Route:
    if not route.by_autograd:
        return route
    targets = tuple(t for t in route.targets if t.site in live)
    return route if len(targets) == len(route.targets) else replace(route, targets=targets)
