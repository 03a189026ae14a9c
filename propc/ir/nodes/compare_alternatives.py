"""Compare nodes: costs beside what they would be."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from propc.ir.nodes.look import PINK, Look, Words
from propc.ir.nodes.node import Graph, Kind, Node, Plates
from propc.ir.nodes.site import Site
from propc.ir.reach import Reach
from propc.ir.records import Ref


@dataclass(frozen=True, slots=True, kw_only=True)
class CompareAlternatives(Node):
    """A cost beside what it would be on alternatives of a site; inserted by explore-alternatives.

    Inputs are the cost and that of the alternatives, in the plate `over`; the value is the cost's. A route leads
    from here to the site: weight × (cost of the alternative − cost).
    """

    kind: ClassVar[Kind] = Kind.COMPARE
    sends: ClassVar[bool] = True
    hands_on: ClassVar[bool] = True
    foldable: ClassVar[bool] = False

    over: str

    def depends(self, port: int) -> Sequence[Ref]:
        return self.inputs[:1]

    def reach(self, given: Sequence[Reach], own: int) -> Sequence[Reach]:
        return given[:1]

    def carrying(self, union: Plates) -> CompareAlternatives:
        return replace(self, plates=union(self.inputs[:1]))

    def problems(self, graph: Graph) -> Iterator[str]:
        """A cost is compared with copies of itself, on alternatives of a site to which a route leads."""
        sites = [n.name for n in graph.nodes.values() if isinstance(n, Site) and n.alternatives == self.over]
        ways = [route for route in graph.routes if route.source == self.name and route.kind == "alternatives"]
        if len(self.inputs) != 2 or self.over not in graph.plates_of(self.inputs[1]):
            yield f"compare node {self.name!r} ({self.where}) reads no cost of alternatives in the plate {self.over!r}"
        if len(sites) != 1 or [token.site for way in ways for token in way.targets] != sites:
            yield f"compare node {self.name!r} ({self.where}) has no route to the site with alternatives {self.over!r}"

    def look(self, graph: Graph) -> Look:
        return Look(
            ((Words(f"compare on {self.over}", PINK[0], 9),),),
            {"shape": "invtrapezium", "color": PINK[0], "fillcolor": PINK[1], "margin": "0.0,0.03"},
        )
