"""Resample nodes: what gaussian-shaping draws anew."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from propc.ir.nodes.node import Kind, Node


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

    sites: tuple[str, ...] = ()
    shrinkage: float = 0.0
    jitter: float = 1e-6

    @property
    def width(self) -> int:
        """Dimensions of the Gaussian: elements of a row of all inputs."""
        return sum(math.prod(kind.shape[1:]) for kind in self.outputs)
