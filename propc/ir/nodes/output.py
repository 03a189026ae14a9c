"""The output: what the program returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from propc.ir.nodes.node import Kind, Node


@dataclass(frozen=True, slots=True, kw_only=True)
class Output(Node):
    """The returned values in flattened order; `guarded` marks those that are no costs."""

    kind: ClassVar[Kind] = Kind.OUTPUT

    guarded: tuple[bool, ...] = ()
    paths: tuple[str, ...] = ()
