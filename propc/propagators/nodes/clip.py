"""Clip cotangents."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from propc.errors import PropcValueError, message, nearest
from propc.ir.messages import Message
from propc.propagators.propagator import NodeView, Propagator, Sent
from propc.propagators.registry import register_propagator

WAYS = ("value", "norm", "row")


@register_propagator("clip")
@dataclass(frozen=True)
class Clip(Propagator):
    """The cotangent on the node's value goes on within a limit. Biased where it acts.

    Under ``loss.mean()`` cotangents carry a factor 1/batch, which the limit must carry too.

    Attributes:
        limit: the largest magnitude.
        by: of each element (``"value"``), of the whole (``"norm"``), or of each row of the batch (``"row"``).
    """

    name: ClassVar[str] = "clip"
    limit: float = 1.0
    by: str = "value"

    def __post_init__(self) -> None:
        if self.by not in WAYS:
            raise PropcValueError(message(f"option by={self.by!r} of 'clip' is unknown", nearest(str(self.by), WAYS)))
        if not self.limit > 0:
            raise PropcValueError(message(f"option limit={self.limit!r} of 'clip' must be positive"))

    def backward(self, node: NodeView, message: Message) -> Sent:
        return message.replace(grad=self._clipped(message.grad)) if "grad" in message else message

    def _clipped(self, grad: Tensor) -> Tensor:
        if self.by == "value" or not grad.dim():
            return grad.clamp(-self.limit, self.limit)
        dims = list(range(1 if self.by == "row" else 0, grad.dim()))
        norm = grad.square().sum(dims, keepdim=True).sqrt() if dims else grad.abs()
        return grad * (self.limit / norm).clamp(max=1.0).nan_to_num(1.0)
