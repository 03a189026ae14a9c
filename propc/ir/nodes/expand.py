"""Expand nodes: tangents at a site along directions of a weighting target."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch.fx

from propc.fx.segment_code import key_of
from propc.ir.nodes.look import TEAL, Look, Words
from propc.ir.nodes.node import Graph, Kind, Node, listed
from propc.ir.reach import NOTHING, Reach


@dataclass(frozen=True, slots=True, kw_only=True)
class Expand(Node):
    """What turns cotangents on a site's φ into variances at a weighting target; inserted by expand-targets.

    Where `directions` is not 0, the first outputs, one for each φ that depends on the target, are tangents of φ,
    ``[P, *φ.shape]``, along P directions: when `exact` they are the P coordinates of the target, else random signs.
    A cotangent on φ times tangents is the per-sample gradient along these directions.

    With `norms`, the outputs behind them are what a reverse traversal to the target reads, from which the site's rule
    takes the exact variance (`propc.runtime.weighting.per_sample_norms`) of the target, or of all of it that has no
    tangents.
    """

    kind: ClassVar[Kind] = Kind.EXPAND
    ends_repeat: ClassVar[bool] = False

    target: str
    directions: int
    exact: bool
    norms: bool = False
    code: torch.fx.GraphModule = field(repr=False)

    @property
    def way(self) -> str:
        """How it takes variances at its target."""
        plural = "" if self.directions == 1 else "s"
        along = f"{self.directions} {'exact' if self.exact else 'random'} direction{plural}"
        if not self.norms:
            return f"{along} of {self.target}"
        return f"{'per-sample norms and ' + along if self.directions else 'exact per-sample norms'} of {self.target}"

    def reach(self, given: Sequence[Reach], own: int) -> Sequence[Reach]:
        """Nothing: what it makes is read beside the gradient."""
        return (NOTHING,) * len(self.outputs)

    def key(self) -> Hashable:
        return self.target, self.exact, self.directions, self.norms, key_of(self.code.graph)

    def drawn_as(self) -> Hashable:
        return self.target, self.exact

    def text(self, graph: Graph) -> str:
        return f"expand({listed(graph, self.inputs)}) {{{self.way}}}"

    def look(self, graph: Graph) -> Look:
        return Look(
            ((Words(self.way, TEAL[0], 9),),),
            {"shape": "cds", "color": TEAL[0], "fillcolor": TEAL[1], "margin": "0.15,0.08"},
        )
