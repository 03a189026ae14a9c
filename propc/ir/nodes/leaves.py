"""Inputs and parameters: values that are given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from propc.ir.nodes.look import INK, PALE, QUIET, Look, Words
from propc.ir.nodes.node import Graph, Kind, Node
from propc.ir.reach import Reach


@dataclass(frozen=True, slots=True, kw_only=True)
class LeafNode(Node):
    """A tensor that is given, found under `path`."""

    addressed: ClassVar[bool] = True
    foldable: ClassVar[bool] = False
    ends_repeat: ClassVar[bool] = False

    path: str

    @property
    def what(self) -> str:
        """Its kind, in the text form."""
        return self.called

    def reach(self, given: Sequence[Reach], own: int) -> Sequence[Reach]:
        return (Reach(leaves=own, ancestors=own),)

    def text(self, graph: Graph) -> str:
        return f"{self.what} {self.path}" + (", requires grad" if self.outputs[0].requires_grad else "")

    def look(self, graph: Graph) -> Look:
        """Small; one that wants a gradient in ink, others in grey."""
        wanted = self.outputs[0].requires_grad
        return Look(
            ((Words(self.path, INK if wanted else QUIET, 9, bold=wanted), self.shaped()),),
            {
                "style": "filled,rounded",
                "color": "#e2e8f0",
                "fillcolor": PALE,
                "height": "0.2",
                "margin": "0.08,0.04",
            },
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Input(LeafNode):
    """A tensor argument. `path` is its place in the call, such as ``beta`` or ``batch['x']``."""

    kind: ClassVar[Kind] = Kind.INPUT


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameter(LeafNode):
    """A tensor that the program holds: parameter, buffer or closed-over tensor, by `path`.

    A `constant` is the same at every call; its path is its value where all elements are equal.
    """

    kind: ClassVar[Kind] = Kind.PARAMETER

    constant: bool = False

    @property
    def number(self) -> str | None:
        if not self.constant:
            return None
        try:
            float(self.path)
        except ValueError:
            return None
        return self.path

    @property
    def what(self) -> str:
        return "constant" if self.constant else self.called
