"""What reaches a value: sites, inputs and parameters, one bit each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from operator import or_


@dataclass(frozen=True, slots=True)
class Reach:
    """What reaches a value; bit i of a mask is site i in program order.

    A resample node has a bit of its own, behind those of the sites, and stands for all sites before it.

    Attributes:
        any: sites, along any path.
        smooth: sites, along a path that autograd can follow, through other sites too.
        rough: sites, along a path that jumps (comparison, rounding, integers).
        parents: sites, along a smooth path that meets no other site.
        near: sites, along any path that meets no other site.
        leaves: inputs and parameters that want a gradient, along such a path.
        ancestors: inputs and parameters that want a gradient, along any path.
    """

    any: int = 0
    smooth: int = 0
    rough: int = 0
    parents: int = 0
    leaves: int = 0
    ancestors: int = 0
    near: int = 0

    def __or__(self, other: Reach) -> Reach:
        return Reach(
            self.any | other.any,
            self.smooth | other.smooth,
            self.rough | other.rough,
            self.parents | other.parents,
            self.leaves | other.leaves,
            self.ancestors | other.ancestors,
            self.near | other.near,
        )


NOTHING = Reach()


def together(reaches: Sequence[Reach]) -> Reach:
    """What reaches several values."""
    return reduce(or_, reaches) if reaches else NOTHING
