"""Steps run one by one, each on leaves of its own, and their vector-Jacobian products."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from propc.runtime.plan.step import Step


class Cotangents:
    """Sums of cotangents on values, by place."""

    def __init__(self, start: Mapping[int, Tensor]) -> None:
        self.found: dict[int, Tensor] = dict(start)

    def add(self, slot: int, cotangent: Tensor) -> None:
        """Add to what has arrived at a value."""
        known = self.found.get(slot)
        self.found[slot] = cotangent if known is None else known + cotangent

    def pop(self, slot: int) -> Tensor | None:
        """What has arrived at a value, if anything."""
        return self.found.pop(slot, None)


class Tape:
    """The values of one call, which of them want a cotangent, and what each step was run on."""

    def __init__(self, count: int) -> None:
        self.values: list[Any] = [None] * count
        self.wants: list[bool] = [False] * count
        self._steps: dict[int, tuple[list[Any], list[Any]]] = {}

    def leaf(self, slot: int) -> Any:
        """A value without history, as a leaf where it wants a cotangent."""
        value = self.values[slot]
        return value.detach().requires_grad_() if self.wants[slot] else value

    def run(self, step: Step) -> None:
        """Run a step on leaves of its own, and keep them with what it made of them."""
        leaves = [self.leaf(i) for i in step.reads]
        made = list(step.function(*leaves))
        self._steps[id(step)] = leaves, made
        for i, value in zip(step.writes, made):
            self.wants[i] = isinstance(value, Tensor) and value.requires_grad
            self.values[i] = value.detach() if isinstance(value, Tensor) else value

    def pull(self, step: Step, arrived: Cotangents) -> None:
        """Carry cotangents from what a step made to what it read."""
        leaves, made = self._steps[id(step)]
        ends = [(value, arrived.pop(slot)) for value, slot in zip(made, step.writes)]
        live = [(v, g) for v, g in ends if g is not None and isinstance(v, Tensor) and v.requires_grad]
        wanted = [(i, leaf) for i, leaf in zip(step.reads, leaves) if isinstance(leaf, Tensor) and leaf.requires_grad]
        if not live or not wanted:
            return
        outputs, cotangents = zip(*live)
        grads = torch.autograd.grad(
            outputs, [leaf for _, leaf in wanted], cotangents, allow_unused=True, retain_graph=True
        )
        for (slot, _), grad in zip(wanted, grads):
            if grad is not None:
                arrived.add(slot, grad)
