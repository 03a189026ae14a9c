"""Route messages: every cost sends to every site that influences it and takes messages."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from propc.graph import PropagationGraph
from propc.ir import Cost, Route, Token
from propc.passes.base import Pass, register
from propc.propagators import Baseline


@register("route-messages")
@dataclass(frozen=True)
class RouteMessages(Pass):
    """Plan the routes; a cost reaches each site once, however many paths lead there.

    Tokens under the same baseline share a route, since they receive the same message.
    """

    name: ClassVar[str] = "route-messages"

    def apply(self, graph: PropagationGraph) -> PropagationGraph:
        influence = graph.influence
        masks: dict[tuple[Baseline, int], int] = {}  # which sites take messages, by baseline and token
        for i, site in enumerate(graph.sites):
            for j, baseline in enumerate(site.rule.baselines if site.rule is not None else ()):
                masks[baseline, j] = masks.get((baseline, j), 0) | 1 << i
        tokens = {key: [Token(name, key[1]) for name in influence.sites] for key in masks}
        routes = []
        for cost in graph.of(Cost):
            reached = influence.values[cost.inputs[0]].any
            grouped: dict[Baseline, list[Token]] = {}
            for key, mask in masks.items():
                here = [tokens[key][i] for i in _bits(mask & reached)]
                if here:
                    grouped.setdefault(key[0], []).extend(here)
            routes += [Route(cost.name, tuple(targets), baseline) for baseline, targets in grouped.items()]
        return replace(graph, routes=tuple(routes))


def _bits(mask: int) -> list[int]:
    found = []
    while mask:
        low = mask & -mask
        found.append(low.bit_length() - 1)
        mask ^= low
    return found
