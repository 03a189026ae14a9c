"""Reduce nodes: where plates end."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from propc.ir.nodes.look import PAPER, PINK, QUIET, Look, Words
from propc.ir.nodes.node import Graph, Kind, Node, Plates, listed


@dataclass(frozen=True, slots=True, kw_only=True)
class Reduce(Node):
    """The weighted mean of a value over its outermost plate; inserted by reduce-plates.

    Inputs are the value and, of plates that have any, their weights. Of costs it is a cost too: routes to the
    sites that are not inside `over` begin here. `how` is ``mean``, or ``first`` for values without a mean, such
    as classes, or `LOG_MEAN_EXP`, over all plates at once; then routes to all sites begin here.
    """

    kind: ClassVar[Kind] = Kind.REDUCE
    sends: ClassVar[bool] = True
    foldable: ClassVar[bool] = False

    over: tuple[str, ...]
    how: str = "mean"
    of_cost: bool = True

    def carrying(self, union: Plates) -> Reduce:
        """Without the plates that end here."""
        return replace(self, plates=tuple(name for name in union(self.inputs) if name not in self.over))

    def copied(self, site: str) -> Reduce:
        return replace(self, of_cost=False)

    def text(self, graph: Graph) -> str:
        return f"{self.how}({listed(graph, self.inputs)}) over {', '.join(self.over)}"

    def look(self, graph: Graph) -> Look:
        dark, light = PINK if self.of_cost else (QUIET, PAPER)
        return Look(
            ((Words(f"{self.how} over {', '.join(self.over)}", dark, 9),),),
            {"shape": "invtrapezium", "color": dark, "fillcolor": light, "margin": "0.0,0.03"},
        )
