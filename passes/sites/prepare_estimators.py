"""Prepare estimators: the passes that chosen estimators and propagators bring, such as those that insert nodes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from propc.estimators import Estimator
from propc.ir.graph import PropagationGraph
from propc.ir.nodes.named import Named
from propc.ir.pass_request import PassRequest, Step
from propc.passes.pipeline import Pass, make_pass, register
from propc.passes.sites.assign_propagators import choices, is_function


@register("prepare-estimators")
@dataclass(frozen=True)
class PrepareEstimators(Pass):
    """Run the passes that estimators bring, once for all sites whose estimators bring the same.

    These sites keep their choice, and so do all where `estimator` is a function of the site: it is called once for
    each, and sees them as they were.
    """

    name: ClassVar[str] = "prepare-estimators"
    needed: ClassVar[bool] = True
    estimator: Any = "infer"

    def apply(self, graph: PropagationGraph) -> PropagationGraph:
        groups: list[tuple[tuple[Any, ...], Estimator, list[str]]] = []
        chosen = choices(graph, self.estimator)
        brought = {site: brings for site, choice in chosen.items() if (brings := _passes(choice.passes(())))}
        for site, brings in brought.items():
            same = next((sites for known, _, sites in groups if known == brings), None)
            if same is None:
                groups.append((brings, chosen[site], same := []))
            same.append(site)
        settled = chosen if is_function(self.estimator) else brought
        graph = graph.with_nodes(*(replace(s, requested=chosen[s.name]) for s in graph.sites if s.name in settled))
        for _, choice, sites in groups:
            for step in _passes(choice.passes(tuple(sites))):
                graph = step(graph)
        return _from_propagators(graph)


def _from_propagators(graph: PropagationGraph) -> PropagationGraph:
    """Run the passes that the propagators of named nodes bring, in their place."""
    for node in graph.of(Named):
        brings = _passes(node.rule.passes(node.name)) if node.rule is not None else ()
        if brings:
            graph = graph.with_nodes(replace(node, rule=None))
        for step in brings:
            graph = step(graph)
    return graph


def _passes(brought: Iterable[Step]) -> tuple[Callable[[PropagationGraph], PropagationGraph], ...]:
    """What estimators and propagators bring, as passes."""
    return tuple(make_pass(each) if isinstance(each, PassRequest) else each for each in brought)
