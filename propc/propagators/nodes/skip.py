"""Skip: messages pass over the next nodes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from propc.ir.messages import Target
from propc.propagators.propagator import Propagator
from propc.propagators.registry import register_propagator


@register_propagator("skip")
@dataclass(frozen=True)
class Skip(Propagator):
    """Messages go to the node behind the next `over` nodes with propagators, in program order.

    A cotangent is no such message: it goes on to what the node reads. To send it elsewhere, address it
    (`Message.to`).

    Attributes:
        over: how many nodes they pass over.
    """

    name: ClassVar[str] = "skip"
    over: int = 1

    @property
    def targets(self) -> Target:
        return vars(self).get("targets", self.over + 1)
