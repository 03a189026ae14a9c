"""Subtract a baseline from the costs that pass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from propc.ir.messages import Message
from propc.propagators.baselines import baseline
from propc.propagators.propagator import NodeView, Propagator, Sent
from propc.propagators.registry import register_propagator


@register_propagator("baseline")
@dataclass(frozen=True)
class SubtractBaseline(Propagator):
    """``cost`` minus its baseline goes on; the weights in it count as part of the cost.

    Attributes:
        baseline: ``"loo"``, ``"moving_average"``, None, or a callable, as of `lr`.
    """

    name: ClassVar[str] = "baseline"
    baseline: Any = "loo"

    def __post_init__(self) -> None:
        baseline(self.baseline)

    def state(self, node: Any) -> nn.Module | None:
        return baseline(self.baseline).state()

    def backward(self, node: NodeView, message: Message) -> Sent:
        if "cost" not in message:
            return message
        return message.replace(cost=baseline(self.baseline).centered(message.cost.detach(), node.state))
