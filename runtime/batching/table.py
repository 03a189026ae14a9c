"""All rules for values in plates, by operation name."""

from __future__ import annotations

import operator
from typing import Any

import torch
import torch.nn.functional as F

from propc.fx.operations import Property, step_name
from propc.runtime.batching import layer_rules, operation_rules
from propc.runtime.batching.rule import BatchedOperation, Node, Rule
from propc.util.torch_private import native_nn

RULES: dict[str, Rule] = {**operation_rules.RULES, **layer_rules.RULES}
_TORCH = frozenset(
    value
    for module in (torch, F, torch.Tensor, torch.special, native_nn, torch.linalg, torch.fft, operator)
    for value in vars(module).values()
    if callable(value) and getattr(value, "__hash__", None)
)


def is_of_torch(target: Any) -> bool:
    """Whether what is called is torch's own, so that what it does depends on its arguments alone."""
    return isinstance(target, (str, Property)) or target in _TORCH


def is_by_element(node: torch.fx.Node) -> bool:
    """Whether an operation acts on each element alone, with broadcasting."""
    name = step_name(node)
    return (
        is_of_torch(node.target) and RULES.get(name.removeprefix("__").removesuffix("__")) is operation_rules.by_element
    )


def write(step: BatchedOperation) -> Node | None:
    """The operation for values in plates; None where there is no rule for it."""
    target = step.node.target
    if not step.args or not is_of_torch(target):
        return None
    found = RULES.get(step.name.removeprefix("__").removesuffix("__"))
    return found(step) if found is not None and step.kwargs.get("out") is None else None
