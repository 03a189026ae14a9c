"""Loss: what a cost sends."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from propc.ir.messages import Message
from propc.propagators.propagator import NodeView, Propagator, Sent
from propc.propagators.registry import register_propagator


@register_propagator("loss")
@dataclass(frozen=True)
class Loss(Propagator):
    """A cost sends its weight as cotangent, and weight × value to the sites. For costs.

    Attributes:
        cumulative: the value goes to all sites that influence the cost; else only to the last ones, from
            which a path meets no other site.
        gradient: whether the cotangent goes out; without it only the sites learn of the cost.
    """

    name: ClassVar[str] = "loss"
    cumulative: bool = True
    gradient: bool = True

    def backward(self, node: NodeView, message: Message) -> Sent:
        if "grad" not in message:
            return message
        sent = Message(cost=message.grad * node.value)
        return sent.replace(grad=message.grad) if self.gradient else sent
