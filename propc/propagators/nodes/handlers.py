"""Propagators of a line or two: what of a message goes on, and where to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Any, ClassVar

from propc.ir.messages import Message, Target
from propc.propagators.propagator import NodeView, Propagator, Sent
from propc.propagators.registry import register_propagator


@register_propagator("backprop")
@dataclass(frozen=True)
class Backprop(Propagator):
    """What autograd does: the cotangent on the node's value goes on, other fields end here."""

    name: ClassVar[str] = "backprop"

    def backward(self, node: NodeView, message: Message) -> Sent:
        return message.only("grad")


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


@register_propagator("scale")
@dataclass(frozen=True)
class Scale(Propagator):
    """Cotangents and costs go on times `factor`."""

    name: ClassVar[str] = "scale"
    factor: float = 1.0

    def backward(self, node: NodeView, message: Message) -> Sent:
        return message.replace(**{name: message[name] * self.factor for name in ("grad", "cost") if name in message})


@register_propagator("sum")
@dataclass(frozen=True)
class Sum(Propagator):
    """Fields that arrive as lists (``Field(merge="list")``) go on as a list of one: their sum."""

    name: ClassVar[str] = "sum"

    def forward(self, node: NodeView, message: Message) -> Sent:
        return _summed(message)

    def backward(self, node: NodeView, message: Message) -> Sent:
        return _summed(message)


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


@register_propagator("pause")
@dataclass(frozen=True)
class Pause(Propagator):
    """The cotangents of all consumers of the value arrive as one sum and go on once.

    propc visits every node once, after all who send to it, so what is before a shared value is never
    traversed twice; a pause keeps the place visible in the graph, and keeps what is before it and what is
    after it two stages.
    """

    name: ClassVar[str] = "pause"

    @property
    def idle(self) -> bool:
        return False


def _summed(message: Message) -> Message:
    return Message({name: _sum(value) if isinstance(value, tuple) else value for name, value in message.items()})


def _sum(values: Sequence[Any]) -> Any:
    return reduce(add, values)
