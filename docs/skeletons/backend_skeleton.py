"""A backend, to copy: rename it, change what becomes of the steps, and check it against `eager`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.distributions import Normal

import propc
from propc.runtime.backends import Backend, Report


@propc.register_backend("keep-half")
class KeepHalf(Backend):
    """What segments keep for the reverse pass is kept in bfloat16: half the memory for half the digits."""

    def plan(self, planned: Any, values: Sequence[Any]) -> tuple[Any, Report]:
        """The steps to run from the second call on: as they are, those of segments changed."""
        changed = [halved(step) if step.node.kind is propc.Kind.SEGMENT else step for step in planned.plan]
        return changed, Report(self.name)


def halved(step: Any) -> Any:
    """A step that reads and writes the same values, and keeps less between the passes."""
    function: Callable[..., Sequence[Any]] = step.function

    def run(*given: Any) -> Sequence[Any]:
        with saved_tensors_hooks(pack, unpack):
            return function(*given)

    return replace(step, function=run)


def pack(tensor: Tensor) -> tuple[torch.dtype, Tensor]:
    """What is kept: parameters and data live anyway, integers have no half."""
    whole = tensor.is_leaf or not tensor.is_floating_point()
    return tensor.dtype, tensor if whole else tensor.bfloat16()


def unpack(kept: tuple[torch.dtype, Tensor]) -> Tensor:
    """What the reverse pass gets."""
    dtype, tensor = kept
    return tensor.to(dtype)


def program(theta: Tensor) -> Tensor:
    """A site between two layers."""
    x = propc.sample(Normal(torch.sin(theta).expand(1000, 3), 0.5), "x")
    return torch.sin(x).square().sum(-1)


def check() -> None:
    """The values of `eager` from the same seed, and its gradients but for the rounding."""
    theta = torch.tensor([0.5, -1.0, 2.0], requires_grad=True)
    found = {}
    for backend in ("eager", "keep-half"):
        compiled = propc.compile(program, estimator="rp", backend=backend)
        compiled(theta)  # the first call is always run as it is
        torch.manual_seed(0)
        costs = compiled(theta)
        found[backend] = costs, torch.autograd.grad(costs.mean(), theta)[0]
    (values, exact), (same, rounded) = found.values()
    assert torch.equal(values, same)
    assert torch.allclose(rounded, exact, rtol=0.02)
    assert not torch.equal(rounded, exact)


if __name__ == "__main__":
    check()
