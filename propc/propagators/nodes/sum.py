"""Sum: several messages become one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Any, ClassVar

from propc.ir.messages import Message
from propc.propagators.propagator import NodeView, Propagator, Sent
from propc.propagators.registry import register_propagator


@register_propagator("sum")
@dataclass(frozen=True)
class Sum(Propagator):
    """Fields that arrive as lists (``Field(merge="list")``) go on as a list of one: their sum."""

    name: ClassVar[str] = "sum"

    def forward(self, node: NodeView, message: Message) -> Sent:
        return _summed(message)

    def backward(self, node: NodeView, message: Message) -> Sent:
        return _summed(message)


def _summed(message: Message) -> Message:
    return Message({name: _sum(value) if isinstance(value, tuple) else value for name, value in message.items()})


def _sum(values: Sequence[Any]) -> Any:
    return reduce(add, values)
