"""Scale what passes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from propc.ir.messages import Message
from propc.propagators.propagator import NodeView, Propagator, Sent
from propc.propagators.registry import register_propagator


@register_propagator("scale")
@dataclass(frozen=True)
class Scale(Propagator):
    """Cotangents and costs go on times `factor`."""

    name: ClassVar[str] = "scale"
    factor: float = 1.0

    def backward(self, node: NodeView, message: Message) -> Sent:
        return message.replace(**{name: message[name] * self.factor for name in ("grad", "cost") if name in message})
