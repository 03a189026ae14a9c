"""Chain: several propagators at one node, each with a memory of its own."""

from __future__ import annotations

from typing import ClassVar

from propc.propagators.nodes.sequence import Sequence
from propc.propagators.propagator import NodeView


class Chain(Sequence):
    """Parts act like nodes in a row: each has its own memory, and works on the value that the one before left.

    Otherwise as `Sequence`.
    """

    name: ClassVar[str] = "chain"

    def _view(self, node: NodeView, key: str) -> NodeView:
        return node.part(key, shared=False)
