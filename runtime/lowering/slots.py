"""The table of a call: which place each value and each token has in it."""

from __future__ import annotations

from typing import Any

from propc.ir.graph import PropagationGraph
from propc.ir.nodes.leaves import Input, Parameter
from propc.ir.nodes.node import Node
from propc.ir.nodes.scan import Scan
from propc.ir.nodes.site import Site
from propc.ir.records import Ref, Token
from propc.runtime.plan.step import Values


class Places:
    """Where the values and tokens of a graph stand.

    Attributes:
        slots: the place of each; joins get theirs when they are planned.
        inputs, held: the places of arguments, and of tensors that the program holds.
        given: of both.
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
        self.given = (*self.inputs, *self.held)

    def __len__(self) -> int:
        return len(self.slots)

    def add(self, value: Ref | Token) -> int:
        """A new place."""
        self.slots[value] = place = len(self.slots)
        return place

    def reads(self, node: Node) -> tuple[int, ...]:
        """The places of what a node reads."""
        return tuple(self.slots[ref] for ref in node.inputs)

    def writes(self, node: Node) -> range:
        """The places of a node's outputs, and of its tokens behind them."""
        made: list[Ref | Token] = [*node.made, *_tokens(node)]
        first = self.slots[made[0]] if made else 0
        return range(first, first + len(made))

    def named(self, values: Values) -> dict[Ref, Any]:
        """The values of a call by name, without tokens."""
        return {ref: values[i] for ref, i in self.slots.items() if isinstance(ref, Ref)}


def _tokens(node: Node) -> list[Token]:
    """Those that a node makes."""
    if isinstance(node, Site) and node.rule is not None:
        return [Token(node.name, index) for index in range(node.rule.inlets)]
    return [Token(node.name, index) for index in range(len(node.tokens))] if isinstance(node, Scan) else []
