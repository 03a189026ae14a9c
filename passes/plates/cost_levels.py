"""Where the messages of a cost in plates begin: at it, or after some of its plates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from propc.ir.nodes.cost import Cost
from propc.ir.nodes.node import Node
from propc.ir.nodes.reduce import Reduce
from propc.ir.nodes.site import Site
from propc.ir.records import LOG_MEAN_EXP, Ref


def levels_of(cost: Cost, reduces: Mapping[Ref, Reduce]) -> list[Cost | Reduce]:
    """A cost and what it becomes over one plate after the other.

    Args:
        reduces: reduce nodes by what they reduce.
    """
    found: list[Cost | Reduce] = [cost]
    while found[-1].plates:
        found.append(reduces[Ref(found[-1].name)])
    return found


def level_of(levels: Sequence[Node], site: Site) -> str:
    """Where a site's messages begin: after the plates that began behind it, whose weights depend on its draw.

    A bound is one number, which every sample of a row has part in: there they begin at the end.
    """
    if is_bound(levels[-1]):
        return levels[-1].name
    inside = [node for node in levels if set(site.plates) <= set(node.plates)]
    return inside[-1].name


def is_bound(node: Node) -> bool:
    """Whether a node reduces log weights to a bound."""
    return isinstance(node, Reduce) and node.how == LOG_MEAN_EXP
