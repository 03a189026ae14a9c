"""Named values: what `propc.node` marks."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any, ClassVar

from propc.ir.nodes.look import INK, Look, Words
from propc.ir.nodes.node import Equal, Graph, Kind, Node, listed
from propc.ir.rules import NodeRule


@dataclass(frozen=True, slots=True, kw_only=True)
class Named(Node):
    """A value that the user named with `propc.node`, or a node of a `propc.Network`, which has no value.

    `rule` is what was given as ``propagator=``; None hands cotangents on as autograd does. `forced` is the
    target that a pass forces on its messages in the reverse pass.
    """

    kind: ClassVar[Kind] = Kind.NODE
    marked: ClassVar[bool] = True
    addressed: ClassVar[bool] = True
    hands_on: ClassVar[bool] = True

    rule: NodeRule | None = None
    forced: Any = None

    @property
    def propagator(self) -> NodeRule | None:
        return self.rule

    @property
    def takes_messages(self) -> bool:
        if not self.outputs:  # of a network, where drop-idle leaves out what it can
            return self.rule is not None
        return self.rule is not None and not self.rule.idle

    def key(self) -> Hashable:
        return Equal(self.rule), Equal(self.forced)

    def drawn_as(self) -> Hashable:
        return self.rule.name if self.rule is not None else None

    def text(self, graph: Graph) -> str:
        rule = f" by {self.rule.name}" if self.rule is not None else ""
        return f"{self.called}({listed(graph, self.inputs)}){rule}"

    def look(self, graph: Graph) -> Look:
        rule = [(Words(self.rule.name, bold=True),)] if self.rule is not None else []
        return Look((self.headed(), *rule), {"style": "filled,rounded", "color": INK, "penwidth": "1.6"})
