"""Mixing two parts in few operations: when it is done, and under other autograd than a plain backward."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
import zoo
from surrogate import gradients, seeded
from torch import Tensor

import propc
from propc.runtime.weighting import mix
from propc.runtime.weighting.mix_on_cpu import mix_two


def pair(*shape: int) -> tuple[Tensor, Tensor]:
    return torch.randn(*shape), torch.randn(*shape)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("grads", [[pair(8, 3)], [pair(8)], [pair(8, 2), pair(8, 2)]], ids=["one", "flat", "two"])
def test_it_takes_the_ordinary(grads: list[tuple[Tensor, Tensor]], groups: int) -> None:
    mixed = mix_two(grads, groups)
    assert mixed is not None
    assert [m.shape for m in mixed] == [path.shape for path, _ in grads]


NOT_FINITE = torch.full((8, 2), torch.inf)
LARGE = torch.full((8, 2), 1e300, dtype=torch.float64)
LEFT: dict[str, tuple[list[tuple[Tensor, Tensor]], int]] = {
    "odd": ([pair(7, 2)], 2),
    "few": ([pair(2, 2)], 2),
    "one row": ([pair(1, 2)], 1),
    "unlike": ([pair(8, 2), pair(8)], 1),
    "infinite": ([(NOT_FINITE, torch.ones(8, 2))], 2),
    "overflow": ([(LARGE, LARGE)], 1),
}


@pytest.mark.parametrize("case", LEFT)
def test_it_leaves_the_rest(case: str) -> None:
    assert mix_two(*LEFT[case]) is None


def test_arguments_are_not_written_into() -> None:
    path, score = pair(8, 2)
    kept = path.clone(), score.clone()
    mix_two([(path, score)], 2)
    assert torch.equal(path, kept[0])
    assert torch.equal(score, kept[1])


def test_threads() -> None:
    """Each has its own memory for the weights."""
    given = [[pair(64, 3)] for _ in range(200)]
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda grads: mix_two(grads, 2), given))
    torch.testing.assert_close(found, [mix_two(grads, 2) for grads in given])


def changing_scale(theta: Tensor) -> Tensor:
    law = zoo.recurrent_unit(theta, scale=lambda x: torch.exp(theta[1] * x))
    return torch.cos(zoo.chain(law, torch.linspace(-1.0, 1.0, 16).reshape(8, 2), steps=3)).sum(1)


def constant_scale(theta: Tensor) -> Tensor:
    start = torch.linspace(-1.0, 1.0, 16).reshape(8, 2)
    return torch.cos(zoo.chain(zoo.recurrent_unit(theta, 0.3), start, steps=3)).sum(1)


@pytest.mark.parametrize("program", [changing_scale, constant_scale], ids=lambda p: p.__name__)
@pytest.mark.parametrize("weights", ["same", "crossfit"])
def test_second_derivatives(weights: str, program: Callable[..., Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    """Quick or careful, they are the same: weights are constants of both."""
    theta = torch.tensor([0.4, -0.3], requires_grad=True)

    def run() -> list[Tensor]:
        compiled: Any = propc.compile(program, estimator=propc.estimator("tp", weights=weights))
        (first,) = torch.autograd.grad(seeded(compiled, theta, seed=1).sum(), theta, create_graph=True)
        return [first, *gradients(first[0] + 2 * first[1], [theta])]

    quick = run()
    monkeypatch.setattr(mix, "mix_two", lambda *args: None)
    torch.testing.assert_close(quick, run())


@pytest.mark.parametrize("program", [changing_scale, constant_scale], ids=lambda p: p.__name__)
def test_batched_gradients(program: Callable[..., Tensor]) -> None:
    """Under vmap, where no number can be looked at, every row of cotangents is weighed by itself."""
    theta = torch.tensor([0.4, -0.3], requires_grad=True)
    cost = seeded(propc.compile(program, estimator="tp"), theta, seed=1)
    rows = torch.rand(3, 8)
    (found,) = torch.autograd.grad(cost, theta, rows, is_grads_batched=True, retain_graph=True)
    each = [torch.autograd.grad(cost, theta, row, retain_graph=True)[0] for row in rows]
    torch.testing.assert_close(found, torch.stack(each))
