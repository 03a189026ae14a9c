"""Backprop: hands cotangents on and nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from propc.ir.messages import Message
from propc.propagators.propagator import NodeView, Propagator, Sent
from propc.propagators.registry import register_propagator


@register_propagator("backprop")
@dataclass(frozen=True)
class Backprop(Propagator):
    """What autograd does: the cotangent on the node's value goes on, other fields end here."""

    name: ClassVar[str] = "backprop"

    def backward(self, node: NodeView, message: Message) -> Sent:
        return message.only("grad")
