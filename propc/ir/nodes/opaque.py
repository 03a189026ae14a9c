"""Black boxes: what `propc.opaque` marks."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch.fx

from propc.ir.nodes.node import Kind, Node


@dataclass(frozen=True, slots=True, kw_only=True)
class Opaque(Node):
    """A black box, `propc.opaque`: runs as it is, no gradient goes through it.

    `how` is what the user said of it in plates: ``batch``, one call with the plates folded into the batch,
    ``loop``, a call for each element, or nothing.
    """

    kind: ClassVar[Kind] = Kind.OPAQUE

    call: torch.fx.Node = field(repr=False)
    arguments: tuple[torch.fx.Node, ...] = field(repr=False)
    how: str = ""
