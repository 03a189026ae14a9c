"""Black boxes: what `propc.opaque` marks."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch.fx

from propc.fx.segment_code import structure
from propc.ir.nodes.look import INK, LINE, PAPER, Look, Words
from propc.ir.nodes.node import Graph, Kind, Node, listed
from propc.ir.reach import Reach, together


@dataclass(frozen=True, slots=True, kw_only=True)
class Opaque(Node):
    """A black box, `propc.opaque`: runs as it is, no gradient goes through it.

    `how` is what the user said of it in plates: ``batch``, one call with the plates folded into the batch,
    ``loop``, a call for each element, or nothing. `cuts`: the user has said that gradients end there.
    """

    kind: ClassVar[Kind] = Kind.OPAQUE

    call: torch.fx.Node = field(repr=False)
    arguments: tuple[torch.fx.Node, ...] = field(repr=False)
    how: str = ""
    cuts: bool = False

    def way(self, graph: Graph) -> str:
        """How it is called in plates; nothing outside."""
        if not self.plates:
            return ""
        return f", {'plates in the batch' if graph.folds(self) else 'once for each element'}"

    def reach(self, given: Sequence[Reach], own: int) -> Sequence[Reach]:
        """All along a path that jumps."""
        before = together(given)
        made = Reach(any=before.any, rough=before.any, ancestors=before.ancestors, near=before.near)
        return (made,) * len(self.outputs)

    def key(self) -> Hashable:
        return self.how, structure((self.call,), self.arguments, (self.call,))

    def text(self, graph: Graph) -> str:
        return f"opaque({listed(graph, self.inputs)}){self.way(graph)}"

    def look(self, graph: Graph) -> Look:
        head, way = Words(self.name, PAPER, 12, bold=True), Words(f"black box{self.way(graph)}", LINE, 9)
        return Look(((head,), (way,)), {"color": INK, "fillcolor": INK})
