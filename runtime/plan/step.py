"""A plan: steps in order. Everything else that is done to one is a function from plan to plan."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from propc.ir.nodes.node import Node

Values = Sequence[Any]  # of a call, by place


@dataclass(frozen=True, slots=True)
class Step:
    """What a node does in a call.

    Attributes:
        node: whose step it is; one may have several.
        function: gives a sequence.
        reads: the places of its arguments.
        writes: the places of what it gives.
        heard: where it does the steps of several nodes, the names by which they are heard, its own first, each with
            its nodes; a node is in one.
    """

    node: Node
    function: Callable[..., Sequence[Any]]
    reads: tuple[int, ...]
    writes: Sequence[int]
    heard: tuple[tuple[str, tuple[Node, ...]], ...] = ()


Plan = Sequence[Step]


def same(*values: Any) -> tuple[Any, ...]:
    """The function of a step that only gives values another place."""
    return values
