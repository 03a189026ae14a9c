"""Detach and stop: what ends at a node."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from propc.ir.messages import Message
from propc.propagators.propagator import NodeView, Propagator, Sent
from propc.propagators.registry import register_propagator


@register_propagator("detach")
@dataclass(frozen=True)
class Detach(Propagator):
    """The cotangent ends here, as at `torch.Tensor.detach`; other fields go on."""

    name: ClassVar[str] = "detach"

    def backward(self, node: NodeView, message: Message) -> Sent:
        return message.without("grad")


@register_propagator("stop")
@dataclass(frozen=True)
class Stop(Propagator):
    """Everything ends here, in both directions."""

    name: ClassVar[str] = "stop"

    def forward(self, node: NodeView, message: Message) -> Sent:
        return None

    def backward(self, node: NodeView, message: Message) -> Sent:
        return None
