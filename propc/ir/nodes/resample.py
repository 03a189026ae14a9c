"""Resample nodes: what gaussian-shaping draws anew."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

from propc.ir.nodes.look import BLUE, Look, Words
from propc.ir.nodes.node import Graph, Kind, Node, listed
from propc.ir.reach import Reach, together

# What is added to variances where nothing is said, as Pyro's Gaussian processes have it: nothing beside variances about
# one, and enough for float32 where an element does not vary.
JITTER = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class Resample(Node):
    """Draws anew from the Gaussian fitted to the rows of its inputs; inserted by gaussian-shaping.

    The inputs are fitted jointly; the outputs have their types. To what is before it the node is a
    cost, which sends shaped messages; to what is behind it, a site.

    Attributes:
        sites: those that may take its messages; empty for all before it.
        shrinkage: share of the covariance that is replaced by its mean variance times the identity.
        jitter: what is added to the variances.
    """

    kind: ClassVar[Kind] = Kind.RESAMPLE
    draws: ClassVar[bool] = True
    sends: ClassVar[bool] = True
    mixes_rows: ClassVar[str] = "refits a Gaussian to the rows of the batch"

    sites: tuple[str, ...] = ()
    shrinkage: float = 0.0
    jitter: float = JITTER

    @property
    def width(self) -> int:
        """Dimensions of the Gaussian: elements of a row of all inputs."""
        return sum(math.prod(kind.shape[1:]) for kind in self.outputs)

    @property
    def gaussian(self) -> str:
        """What it draws from."""
        shrunk = f", shrinkage {self.shrinkage:g}" if self.shrinkage else ""
        return f"Gaussian of {self.width} dimension{'' if self.width == 1 else 's'}{shrunk}"

    def reach(self, given: Sequence[Reach], own: int) -> Sequence[Reach]:
        """Its own bit alone, which stands for all sites before it."""
        return (Reach(own, own, 0, own, 0, together(given).ancestors),) * len(self.outputs)

    def key(self) -> Hashable:
        return bool(self.sites), self.shrinkage, self.jitter

    def problems(self, graph: Graph) -> Iterator[str]:
        if self.outputs != tuple(graph.nodes[ref.node].outputs[ref.port] for ref in self.inputs):
            yield f"resample node {self.name!r} ({self.where}) does not keep the types of what it refits"

    def text(self, graph: Graph) -> str:
        return f"resample({listed(graph, self.inputs)}) {{{self.gaussian}}}"

    def look(self, graph: Graph) -> Look:
        return Look(
            ((Words(self.name, size=12, bold=True),), (Words(self.gaussian, BLUE[0]),)),
            {"shape": "octagon", "color": BLUE[0], "fillcolor": BLUE[1], "penwidth": "1.6", "margin": "0.03,0.03"},
        )

    def role(self, graph: Graph) -> tuple[Words | None, Words]:
        return Words(self.gaussian), Words(self.called, BLUE[0], bold=True)
