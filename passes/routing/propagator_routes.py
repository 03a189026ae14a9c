"""Routes between propagators, where autograd alone cannot carry their messages."""

from __future__ import annotations

from functools import cache

from propc.ir.adjacency import BACKWARD, FORWARD, declared
from propc.ir.graph import PropagationGraph
from propc.ir.messages import COST, GRAD, Field
from propc.ir.records import Route, Token


def message_routes(graph: PropagationGraph) -> list[Route]:
    """The routes of all nodes that handle messages."""
    network = graph.program is None
    if not network and not graph.general:
        return []
    wiring = graph.wiring
    rules = {name: rule for name in wiring.vertices if (rule := graph.nodes[name].propagator) is not None}
    relays = network or any(field not in (GRAD, COST) for rule in rules.values() for field in rule.sends)
    ahead = relays and (network or any(rule.acts_forward for rule in rules.values()))
    tokens = {name: Token(name) for name in graph.nodes}
    routes = []
    for name, rule in rules.items():
        back, on = (declared(graph.nodes[name], direction) for direction in (BACKWARD, FORWARD))
        near = wiring.parents[name] if relays else ()
        after = wiring.children[name] if ahead else ()
        for kind, found, fields in (
            ("message", near if back is None else wiring.resolve(name, back, BACKWARD), rule.sends),
            ("forward", after if on is None else wiring.resolve(name, on, FORWARD), rule.sends),
            ("kept", (name,) if rule.keeps else (), rule.keeps),
        ):
            ends = [end for end in found if end != name or kind == "kept"]
            if ends:
                routes.append(Route(name, tuple([tokens[end] for end in ends]), None, _names(fields, network), kind))
    return routes


@cache
def _names(fields: tuple[Field, ...], network: bool) -> tuple[str, ...]:
    """What a route is for. In a program cotangents and costs go other ways; what remains may be handed on."""
    found = tuple(field.name for field in fields if network or field not in (GRAD, COST))
    return found or ("handed on",)
