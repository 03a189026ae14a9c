"""Which values keep the elements of a dimension apart by the structure of the program: nothing must be tried."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch.fx

from propc.fx.separate_rows import NOWHERE, UNPROVEN, place_in
from propc.ir.graph import PropagationGraph
from propc.ir.nodes.cost import Cost
from propc.ir.nodes.leaves import LeafNode
from propc.ir.nodes.named import Named
from propc.ir.nodes.node import Node
from propc.ir.nodes.segment import Segment
from propc.ir.records import Ref

Suspects = Sequence[torch.fx.Node]


class RowStructure:
    """Follows a dimension through a graph, from draws on.

    Args:
        drawn: its place in each draw; all of a graph are among them.

    Attributes:
        places: where the dimension is in each value, in the program's shapes.
        suspects: of the values of a segment that are unproven, the operations that may have mixed elements.
    """

    def __init__(self, graph: PropagationGraph, drawn: Mapping[Ref, int]) -> None:
        self.graph, self.places, self.suspects = graph, dict(drawn), dict[Ref, Suspects]()
        for node in graph:
            if not node.copy_of:
                self._follow(node)

    def proves(self, node: Node, place: Callable[[Ref], int]) -> bool:
        """Whether all that a node reads knows the dimension where it is to be, or not at all."""
        return all(self.places.get(ref, UNPROVEN) in (NOWHERE, place(ref)) for ref in node.inputs)

    def suspected(self, refs: Iterable[Ref]) -> Suspects:
        """The operations that may have mixed elements on the way to values."""
        return list(dict.fromkeys(step for ref in refs for step in self.suspects.get(ref, ())))

    def _follow(self, node: Node) -> None:
        given = [self.places.get(ref, UNPROVEN) for ref in node.inputs]
        if isinstance(node, Segment):
            self._through(node, given)
        for ref in node.made:
            if ref not in self.places:
                self.places[ref] = _beside(node, given)

    def _through(self, segment: Segment, given: Sequence[int]) -> None:
        places = dict(zip(segment.arguments, given))
        blamed: dict[torch.fx.Node, Suspects] = {}
        for step in segment.body:
            places[step] = place_in(step, places)
            if places[step] == UNPROVEN:
                before = [each for source in step.all_input_nodes for each in blamed.get(source, ())]
                blamed[step] = list(dict.fromkeys(before)) or [step]
        for ref, result in zip(segment.made, segment.results):
            self.places[ref] = places[result]
            self.suspects[ref] = blamed.get(result, ())


def _beside(node: Node, given: Sequence[int]) -> int:
    """Of a node that is neither segment nor draw."""
    if isinstance(node, LeafNode):
        return NOWHERE
    if isinstance(node, (Named, Cost)):
        return given[0] if given else NOWHERE
    return NOWHERE if set(given) <= {NOWHERE} else UNPROVEN
