"""Reduce nodes: where plates end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from propc.ir.nodes.node import Kind, Node


@dataclass(frozen=True, slots=True, kw_only=True)
class Reduce(Node):
    """The weighted mean of a value over its outermost plate; inserted by reduce-plates.

    Inputs are the value and, of plates that have any, their weights. Of costs it is a cost too: routes to the
    sites that are not inside `over` begin here. `how` is ``mean``, or ``first`` for values without a mean, such
    as classes, or `LOG_MEAN_EXP`, over all plates at once; then routes to all sites begin here.
    """

    kind: ClassVar[Kind] = Kind.REDUCE

    over: tuple[str, ...]
    how: str = "mean"
    of_cost: bool = True
