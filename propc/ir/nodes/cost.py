"""Costs: what `propc.cost` marks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from propc.ir.nodes.node import Kind, Node
from propc.ir.rules import NodeRule


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost(Node):
    """A per-sample loss term, [batch], in plates of the data [batch, n]; its gradient sends messages.

    `path` says where it stands: a name, or the place in the returned value. `rule` is what was given as
    ``propagator=``; None sends its weight on as cotangent, and weight × (value − baseline) along its routes.
    `how` says what becomes of its values in plates: their ``mean``, or, of log weights, `LOG_MEAN_EXP`.
    """

    kind: ClassVar[Kind] = Kind.COST

    path: str
    rule: NodeRule | None = None
    forced: Any = None
    how: str = "mean"

    @property
    def propagator(self) -> NodeRule | None:
        return self.rule
