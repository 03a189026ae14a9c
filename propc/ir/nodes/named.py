"""Named values: what `propc.node` marks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from propc.ir.nodes.node import Kind, Node
from propc.ir.rules import NodeRule


@dataclass(frozen=True, slots=True, kw_only=True)
class Named(Node):
    """A value that the user named with `propc.node`, or a node of a `propc.Network`, which has no value.

    `rule` is what was given as ``propagator=``; None hands cotangents on as autograd does. `forced` is the
    target that a pass forces on its messages in the reverse pass.
    """

    kind: ClassVar[Kind] = Kind.NODE

    rule: NodeRule | None = None
    forced: Any = None

    @property
    def propagator(self) -> NodeRule | None:
        return self.rule
