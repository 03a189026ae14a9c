"""A step on two backends: the same seed must give the same values and gradients, call after call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

import propc
from propc.runtime.backends import Report
from propc.runtime.backends.inductor import compile_stage

Loss = Callable[[Any], Tensor]


def plainly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the traced halves of stages as they are, without the seconds that their compilation takes."""

    def run(code: torch.fx.GraphModule, reverse: bool) -> Any:
        def call(given: list[Tensor]) -> Any:
            arguments = list(given)
            given.clear()  # as compiled code does
            with torch.no_grad():
                return code(*arguments)

        return call

    monkeypatch.setattr(compile_stage, "compiled", run)


def total(returned: Any) -> Tensor:
    """The sum of all that can be differentiated, each value with a weight of its own."""
    leaves = [leaf for leaf in pytree.tree_leaves(returned) if isinstance(leaf, Tensor) and leaf.requires_grad]
    assert leaves
    return torch.stack(
        [
            (i + 1) * (leaf * torch.linspace(0.5, 1.5, leaf.numel()).view(leaf.shape)).sum()
            for i, leaf in enumerate(leaves)
        ]
    ).sum()


def step(compiled: Any, inputs: Sequence[Any], seed: int, loss: Loss = total) -> list[Tensor]:
    """Values and gradients of one call; leaves keep no gradient."""
    leaves = [x for x in (*inputs, *parameters(compiled)) if isinstance(x, Tensor) and x.requires_grad]
    torch.manual_seed(seed)
    returned = compiled(*inputs)
    grads = torch.autograd.grad(loss(returned), leaves, allow_unused=True)
    values = [leaf.detach() for leaf in pytree.tree_leaves(returned) if isinstance(leaf, Tensor)]
    after = torch.rand(())  # as many random numbers were drawn
    return [*values, *(torch.zeros(()) if grad is None else grad for grad in grads), after]


def parameters(compiled: Any) -> list[Tensor]:
    """Those of a module."""
    return list(compiled.parameters()) if isinstance(compiled, nn.Module) else []


def pair(program: Any, estimator: Any = "infer", **options: Any) -> tuple[Any, Any]:
    """A program on `eager` and on `inductor`."""
    made = [propc.compile(program, estimator=estimator, backend=name, **options) for name in ("eager", "inductor")]
    return made[0], made[1]


def assert_agree(
    program: Any,
    inputs: Sequence[Any],
    estimator: Any = "infer",
    *,
    loss: Loss = total,
    calls: int = 3,
    tolerance: float | None = None,
    **options: Any,
) -> list[Report]:
    """Compare calls; the reports of what was compiled."""
    eager, inductor = pair(program, estimator, **options)
    for seed in range(calls):
        assert_same(step(inductor, inputs, seed, loss), step(eager, inputs, seed, loss), tolerance)
    return reports(inductor)


def assert_same(found: Sequence[Tensor], wanted: Sequence[Tensor], tolerance: float | None = None) -> None:
    """To floating-point tolerance: 1e-10, in float32 2e-5."""
    assert len(found) == len(wanted)
    for have, want in zip(found, wanted):
        allowed = tolerance or (1e-10 if want.dtype == torch.float64 else 2e-5)
        torch.testing.assert_close(have, want, rtol=allowed, atol=allowed)


def reports(compiled: Any) -> list[Report]:
    """What the backend has made of each graph of a compiled object."""
    kept = {id(each): each for graphs in compiled._compiler().cache.values() for each in graphs}
    found = (getattr(each.executable, "report", None) for each in kept.values())
    return [report for report in found if report is not None]
