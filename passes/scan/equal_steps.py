"""The steps of one scan in a graph, and from where on they are alike."""

from __future__ import annotations

from collections.abc import Hashable
from functools import partial

from propc.errors import ScanError, message
from propc.ir.graph import PropagationGraph
from propc.ir.nodes.node import Node
from propc.ir.records import Ref
from propc.types import Turn


class EqualSteps:
    """The steps of one scan in a graph.

    Attributes:
        nodes: of each step, in program order.
        place: step and position of every node in a step.
        middle: the index of the one that stands for many.
        first: of the first from which on all are alike, up to the one behind the middle.
    """

    def __init__(self, graph: PropagationGraph, turn: Turn) -> None:
        self.graph, self.turn, self.middle = graph, turn, turn.index
        self.nodes: list[list[Node]] = []
        every = list(graph)
        mine = [i for i, node in enumerate(every) if node.turn is not None and node.turn.scan == turn.scan]
        for node in every[mine[0] : mine[-1] + 1]:  # what passes have put between them belongs to the step before
            if node.turn is not None and node.turn.scan == turn.scan and node.turn.index >= len(self.nodes):
                self.nodes += [[] for _ in range(node.turn.index + 1 - len(self.nodes))]
            self.nodes[-1].append(node)
        self.place = {node.name: (i, j) for i, nodes in enumerate(self.nodes) for j, node in enumerate(nodes)}
        self.first = 0
        for early in range(self.middle, -1, -1):
            if (odd := _difference(self, early)) is not None:
                self.first = early + 1
                break
        if odd is not None and self.middle - self.first < 2:
            raise self.error(*odd)

    def like(self, name: str) -> tuple[int, int] | None:
        """Step and position of a node in a step that is like the middle one; None for others."""
        place = self.place.get(name)
        return place if place is not None and place[0] >= self.first else None

    def lag(self) -> int:
        """How many steps back the middle one reads."""
        steps = (self.like(ref.node) for node in self.nodes[self.middle] for ref in node.reads)
        return max((self.middle - place[0] for place in steps if place is not None), default=0)

    def error(self, finding: str, node: Node | None = None) -> ScanError:
        """The error of steps that cannot be one node."""
        at = f"scan {self.turn.scan!r}" if node is None else f"{node.called} {node.name!r}"
        error = ScanError(
            message(
                f"its steps cannot be one node: {finding}"
                if node is None
                else f"the steps of its scan differ: {finding}",
                "Write a Python loop in place of propc.scan, or keep the scan short.",
                at=at,
                where=None if node is None else node.where,
            )
        )
        error.length = self.turn.last
        return error


def _difference(steps: EqualSteps, early: int) -> tuple[str, Node] | None:
    """Where a step and the next one are not alike: what there is, and at which node; None if they are."""
    a, b = steps.nodes[early], steps.nodes[early + 1]
    for x, y in zip(a, b):
        if type(x) is not type(y) or _does(x) != _does(y):
            return f"it is not the like of {x.name!r}", y
        if len(x.reads) != len(y.reads) or not all(map(partial(_same_value, steps), x.reads, y.reads)):
            return f"it does not read the like of what {x.name!r} reads", y
    if len(a) != len(b):
        return f"one has {len(a)} nodes and the next {len(b)}", (a if len(a) > len(b) else b)[-1]
    return None


def _same_value(steps: EqualSteps, early: Ref, late: Ref) -> bool:
    a, b = steps.place.get(early.node), steps.place.get(late.node)
    if early.port != late.port:
        return False
    return early == late or (a is not None and b is not None and (a[0] + 1, a[1]) == b)


def _does(node: Node) -> Hashable:
    """What a node does, short of its name and what it reads."""
    return node.outputs, node.plates, node.dims, node.key()
