"""A node of the graph: what all kinds have."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import ClassVar, TypeVar

import torch

from propc.errors import EstimatorError, PropcError, message
from propc.ir.records import NOWHERE, Ref
from propc.ir.rules import NodeRule
from propc.types import Source, TensorType, Turn

E = TypeVar("E", bound=PropcError)


class Kind(str, Enum):
    """What a node is."""

    INPUT = "input"
    PARAMETER = "parameter"
    SEGMENT = "segment"
    EXPAND = "expand"
    SITE = "site"
    RESAMPLE = "resample"
    REDUCE = "reduce"
    SCAN = "scan"
    COMPARE = "compare"
    NODE = "node"
    OPAQUE = "opaque"
    COST = "cost"
    OUTPUT = "output"


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """What every node has: a unique name, inputs, output types, the user's line.

    `plates` are those that its values carry, the outermost first; set by reduce-plates. `dims` are the leading
    dimensions of the shape of a site or a cost inside a `propc.plate`: `BATCH`, and plates behind it. `copy_of`
    names the node that it runs again on alternatives of a site, without gradient; set by explore-alternatives.
    `turn` is the step of a `propc.scan` in which it was traced.
    """

    kind: ClassVar[Kind]
    name: str
    outputs: tuple[TensorType, ...]
    inputs: tuple[Ref, ...] = ()
    where: Source = NOWHERE
    plates: tuple[str, ...] = ()
    dims: tuple[str, ...] = ()
    copy_of: str = ""
    turn: Turn | None = None

    @property
    def made(self) -> tuple[Ref, ...]:
        """Its values, one for each output."""
        return tuple(Ref(self.name, port) for port in range(len(self.outputs)))

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the first output; ``()`` where there is none."""
        return self.outputs[0].shape if self.outputs else ()

    @property
    def dtype(self) -> torch.dtype | None:
        """Dtype of the first output."""
        return self.outputs[0].dtype if self.outputs else None

    @property
    def propagator(self) -> NodeRule | None:
        """What the node does in the forward and the reverse pass: sites, named nodes and costs can have one."""
        return None

    def error(self, finding: str, fix: str = "", kind: type[E] = EstimatorError) -> E:  # type: ignore[assignment]
        """An error at the node."""
        return kind(message(finding, fix, at=f"{self.kind.value} {self.name!r}", where=self.where))
