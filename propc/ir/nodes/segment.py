"""Segments: what is deterministic, between the marks."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch.fx

from propc.fx.dependence import Dependence
from propc.ir.nodes.node import Kind, Node


@dataclass(frozen=True, slots=True)
class Stage:
    """A distinct piece of code, compiled once and used by every equal segment."""

    name: str
    module: torch.fx.GraphModule


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment(Node):
    """A deterministic piece of the program between sites.

    `body` are its torch.fx nodes in program order, `arguments` and `results` the
    torch.fx nodes that its inputs and outputs stand for; `stage` is set by
    deduplicate-stages. `spread` are the plates of each output; empty where no input is in a plate. `rows` are how many
    of the batch it takes at once, set by chunk-batch; 0 is all.
    """

    kind: ClassVar[Kind] = Kind.SEGMENT

    body: tuple[torch.fx.Node, ...] = field(repr=False)
    arguments: tuple[torch.fx.Node, ...] = field(repr=False)
    results: tuple[torch.fx.Node, ...] = field(repr=False)
    dependence: tuple[Dependence, ...] = field(repr=False)
    stage: Stage | None = None
    spread: tuple[tuple[str, ...], ...] = ()
    rows: int = 0
