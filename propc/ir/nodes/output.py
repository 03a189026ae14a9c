"""The output: what the program returns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

from propc.ir.nodes.look import INK, Look, Words
from propc.ir.nodes.node import Graph, Kind, Node, listed
from propc.ir.reach import Reach


@dataclass(frozen=True, slots=True, kw_only=True)
class Output(Node):
    """The returned values in flattened order; `guarded` marks those that are no costs."""

    kind: ClassVar[Kind] = Kind.OUTPUT
    foldable: ClassVar[bool] = False

    guarded: tuple[bool, ...] = ()
    paths: tuple[str, ...] = ()

    def reach(self, given: Sequence[Reach], own: int) -> Sequence[Reach]:
        """None: nobody reads it."""
        return ()

    @property
    def why_once(self) -> str:
        return "is what is returned"

    def problems(self, graph: Graph) -> Iterator[str]:
        if self.plates:
            yield f"returned values still stand in the plates {', '.join(map(repr, self.plates))}"

    def text(self, graph: Graph) -> str:
        return f"({listed(graph, self.inputs)})"

    def look(self, graph: Graph) -> Look:
        return Look(((Words("return", bold=True),),), {"style": "filled,rounded", "color": INK})
