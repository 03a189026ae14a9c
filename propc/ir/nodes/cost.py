"""Costs: what `propc.cost` marks."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from propc.ir.nodes.look import PINK, Look, Words
from propc.ir.nodes.node import Equal, Graph, Kind, Node, listed
from propc.ir.records import LOG_MEAN_EXP
from propc.ir.rules import NodeRule


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost(Node):
    """A per-sample loss term, [batch], in plates of the data [batch, n]; its gradient sends messages.

    `path` says where it stands: a name, or the place in the returned value. `rule` is what was given as
    ``propagator=``; None sends its weight on as cotangent, and weight × (value − baseline) along its routes.
    `how` says what becomes of its values in plates: their ``mean``, or, of log weights, `LOG_MEAN_EXP`.
    """

    kind: ClassVar[Kind] = Kind.COST
    marked: ClassVar[bool] = True
    addressed: ClassVar[bool] = True
    sends: ClassVar[bool] = True
    hands_on: ClassVar[bool] = True

    path: str
    rule: NodeRule | None = None
    forced: Any = None
    how: str = "mean"

    @property
    def propagator(self) -> NodeRule | None:
        return self.rule

    @property
    def takes_messages(self) -> bool:
        return self.rule is not None and not self.rule.idle

    def key(self) -> Hashable:
        return Equal(self.rule), Equal(self.forced), self.how

    def drawn_as(self) -> Hashable:
        return self.rule.name if self.rule is not None else None

    def problems(self, graph: Graph) -> Iterator[str]:
        if not self.outputs[0].dtype.is_floating_point or len(self.shape) > max(1, len(self.dims)):
            yield f"cost {self.name!r} ({self.where}) is {self.outputs[0]}; a cost is floating point, [batch] or scalar"

    def text(self, graph: Graph) -> str:
        kind = "bound" if self.how == LOG_MEAN_EXP else self.called
        rule = f" by {self.rule.name}" if self.rule is not None else ""
        return f"{kind}({listed(graph, self.inputs)}){rule}"

    def look(self, graph: Graph) -> Look:
        rule = [(Words(self.rule.name, bold=True),)] if self.rule is not None else []
        return Look(
            (self.headed(), *rule),
            {"shape": "hexagon", "color": PINK[0], "fillcolor": PINK[1], "penwidth": "1.6", "margin": "0.01,0.05"},
        )

    def role(self, graph: Graph) -> tuple[Words | None, Words]:
        return None, Words(self.called, PINK[0], bold=True)
