"""Fuse: few autograd edges for many routes, so that one engine call carries them all."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from propc.ir.graph import PropagationGraph
from propc.ir.records import Join, Token
from propc.passes.pipeline import Pass, register


@register("fuse")
@dataclass(frozen=True)
class Fuse(Pass):
    """Let costs share sums of tokens.

    In a chain with a cost at every step the routes number H²/2; each cost's sites are those of
    the cost before and a few more, so one join of tokens a cost is enough, H in all.
    """

    name: ClassVar[str] = "fuse"
    needed: ClassVar[bool] = True

    def apply(self, graph: PropagationGraph) -> PropagationGraph:
        joins: list[Join] = []
        routes = []
        last: dict[object, tuple[Token, frozenset[Token]]] = {}
        for route in graph.routes:
            if not route.by_autograd or route.through:
                routes.append(route)
                continue
            plates = graph.meeting(route)
            key = route.baseline, plates, graph.own(graph[route.source]), route.along
            token, known = last.get(key, (None, frozenset()))
            targets = frozenset(route.targets)
            extends = token is not None and known <= targets
            fresh = [t for t in route.targets if not (extends and t in known)]
            members = ([token] if extends and token is not None else []) + fresh
            if len(members) > 1:
                joins.append(Join(f"join{len(joins)}", tuple(members), plates))
                through = Token(joins[-1].name)
            else:
                through = members[0]
            last[key] = through, targets
            routes.append(replace(route, through=(through,)))
        return replace(graph, joins=tuple(joins), routes=tuple(routes))
