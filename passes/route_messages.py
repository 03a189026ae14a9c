"""Route messages: which way each message goes, from costs to sites and between propagators."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from typing import ClassVar

from propc.graph import PropagationGraph
from propc.ir import Cost, Route, Token
from propc.messages import COST, GRAD, Field
from propc.passes.base import Pass, register
from propc.propagators import Baseline, Gated, Loss, Propagator
from propc.wiring import BACKWARD, FORWARD, declared


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

    def apply(self, graph: PropagationGraph) -> PropagationGraph:
        return replace(graph, routes=(*self._from_costs(graph), *_between_propagators(graph)))

    def _from_costs(self, graph: PropagationGraph) -> list[Route]:
        """Routes of the costs to the sites."""
        if not graph.costs:
            return []
        influence = graph.influence
        masks: dict[tuple[Baseline, int], int] = {}  # which sites take messages, by baseline and token
        for i, site in enumerate(graph.sites):
            for j, baseline in enumerate(site.rule.baselines if site.rule is not None else ()):
                masks[baseline, j] = masks.get((baseline, j), 0) | 1 << i
        tokens = {key: [Token(name, key[1]) for name in influence.sites] for key in masks}
        routes: list[Route] = []
        for cost in graph.of(Cost):
            reached = influence.values[cost.inputs[0]].any
            if not _is_cumulative(cost.rule):
                reached &= sum(1 << influence.sites.index(name) for name in graph.wiring.last_sites[cost.name])
            grouped: dict[Baseline, list[Token]] = {}
            for key, mask in masks.items():
                here = [tokens[key][i] for i in _bits(mask & reached)]
                if here:
                    grouped.setdefault(key[0], []).extend(here)
            routes += [Route(cost.name, tuple(targets), baseline) for baseline, targets in grouped.items()]
        return routes


def _is_cumulative(rule: Propagator | None) -> bool:
    """Whether a cost is sent to all sites that influence it."""
    if isinstance(rule, Loss):
        return rule.cumulative
    parts = {} if rule is None else rule.named_parts()
    return all(_is_cumulative(part) for part in parts.values() if isinstance(part, Propagator))


def _bits(mask: int) -> list[int]:
    found = []
    while mask:
        low = mask & -mask
        found.append(low.bit_length() - 1)
        mask ^= low
    return found


def _between_propagators(graph: PropagationGraph) -> list[Route]:
    """Routes of the nodes that handle messages, where autograd alone cannot carry them."""
    if not (graph.general or graph.program is None):
        return []
    wiring = graph.wiring
    tokens = {name: Token(name) for name in graph.nodes}
    ahead = graph.program is None or any(_sends_forward(graph.nodes[name].propagator) for name in wiring.vertices)
    routes = []
    for name in wiring.vertices:
        node = graph.nodes[name]
        rule = node.propagator
        assert rule is not None
        back, on = declared(node, BACKWARD), declared(node, FORWARD)
        near = wiring.children[name] if ahead else ()
        plans = (
            ("message", wiring.parents[name] if back is None else wiring.resolve(name, back, BACKWARD)),
            ("forward", near if on is None else wiring.resolve(name, on, FORWARD)),
            ("kept", (name,) if rule.keeps else ()),
        )
        for kind, found in plans:
            ends = found if kind == "kept" else tuple([end for end in found if end != name])
            if ends:
                fields = _names(rule.keeps if kind == "kept" else rule.sends, graph.program is None)
                routes.append(Route(name, tuple([tokens[end] for end in ends]), None, fields, kind))
    return routes


def _sends_forward(rule: Propagator | None) -> bool:
    """Whether a propagator does something in the forward pass."""
    inner = rule.inner if isinstance(rule, Gated) else rule
    return inner is not None and type(inner).forward is not Propagator.forward


@cache
def _names(fields: tuple[Field, ...], every: bool) -> tuple[str, ...]:
    """What a route is for. In a program cotangents and costs go other ways; what remains may be handed on."""
    found = tuple(field.name for field in fields if every or field not in (GRAD, COST))
    return found or ("handed on",)
