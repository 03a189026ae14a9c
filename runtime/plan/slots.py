"""The table of a call: which place each value and each token has in it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from propc.ir.graph import PropagationGraph
from propc.ir.nodes.leaves import Input, Parameter
from propc.ir.nodes.node import Node
from propc.ir.nodes.scan import Scan
from propc.ir.nodes.site import Site
from propc.ir.records import Ref, Token
from propc.runtime.plan.codegen import Values


class Places:
    """Where the values and tokens of a graph stand.

    Attributes:
        slots: the place of each; joins get theirs when they are planned.
        inputs, held: the places of arguments, and of tensors that the program holds.
        returned: the places of what is returned, in flattened order.
    """

    def __init__(self, graph: PropagationGraph) -> None:
        self.slots: dict[Ref | Token, int] = {}
        for node in graph:
            for port in range(len(node.outputs)):
                self.add(Ref(node.name, port))
            for token in _tokens(node):
                self.add(token)
        self.returned = [self.slots[Ref("output", i)] for i in range(len(graph.output.inputs))]
        self.inputs = tuple(self.slots[Ref(n.name)] for n in graph.of(Input))
        self.held = tuple(self.slots[Ref(n.name)] for n in graph.of(Parameter))

    def __len__(self) -> int:
        return len(self.slots)

    def add(self, value: Ref | Token) -> int:
        """A new place."""
        self.slots[value] = place = len(self.slots)
        return place

    def reads(self, node: Node) -> tuple[int, ...]:
        """The places of what a node reads."""
        return tuple(self.slots[ref] for ref in node.inputs)

    def first(self, node: Node) -> int:
        """The place of a node's first output."""
        return self.slots[Ref(node.name)]

    def writes(self, node: Node) -> range:
        """The places of a node's outputs."""
        first = self.first(node) if node.outputs else 0
        return range(first, first + len(node.outputs))

    def table(self, inputs: Sequence[Tensor], held: Sequence[Tensor]) -> Values:
        """The table at the beginning of a call."""
        values: Values = [None] * len(self)
        for place, tensor in zip(self.inputs, inputs):
            values[place] = tensor
        for place, tensor in zip(self.held, held):
            values[place] = tensor
        return values

    def named(self, values: Values) -> dict[Ref, Any]:
        """The values of a table by name, without tokens."""
        return {ref: values[i] for ref, i in self.slots.items() if isinstance(ref, Ref)}


def _tokens(node: Node) -> list[Token]:
    """Those that a node makes."""
    if isinstance(node, Site) and node.rule is not None:
        return [Token(node.name, index) for index in range(node.rule.inlets)]
    return [Token(node.name, index) for index in range(len(node.tokens))] if isinstance(node, Scan) else []
