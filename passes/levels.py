"""Where the messages of a cost in plates begin: at it, or after some of its plates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from propc.ir import Cost, Node, Reduce, Ref, Site


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
    """Where a site's messages begin: after the plates that began behind it, whose weights depend on its draw."""
    inside = [node for node in levels if set(site.plates) <= set(node.plates)]
    return inside[-1].name
