"""Captured schedules: buffers, results and reverse passes that come late or twice.

Where there is no GPU a stand-in for a recording runs the same functions again at every replay: what is tested is what
stands around the graphs. `test_devices.py` runs the graphs themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import zoo
from torch import Tensor

import propc
from propc.runtime.backends.cudagraphs import Captured, CudaGraphs
from propc.runtime.executable import Executable


class Repeated:
    """Runs a function again in place of a replay, and leaves the results where the first ones were."""

    def __init__(self, run: Callable[[], Sequence[Tensor]], pool: Any = None) -> None:
        self.run, self.pool, self.count = run, None, 0
        self.made = list(run())

    def replay(self) -> None:
        self.count += 1
        with torch.enable_grad():
            self.made = list(self.run())


def program(theta: Tensor, x: Tensor, *, offset: Tensor | None = None) -> Tensor:
    x = zoo.chain(zoo.autoregression(theta, 0.5), x, 3)
    return (x - 1).square().sum(-1) + theta


def captured(compiled: Any, *args: Tensor) -> Captured:
    compiled(*args)
    ((found,),) = compiled.compiler.cache.values()
    run = found.executable
    assert isinstance(run, Executable)
    values: list[Any] = [None] * len(run.places)
    held = found.fetch(None)
    for place, value in zip((*run.places.inputs, *run.places.held), (*args, *held)):
        values[place] = value
    made = Captured(run, run.plan, values, Repeated)
    made.held = held  # type: ignore[attr-defined]
    return made


@pytest.fixture
def theta() -> Tensor:
    return torch.tensor(0.7, dtype=torch.float64, requires_grad=True)


@pytest.fixture
def x() -> Tensor:
    return torch.linspace(-1, 1, 12, dtype=torch.float64).view(6, 2)


@pytest.mark.parametrize("estimator", ["rp", "lr", "tp"])
def test_a_replay_is_a_call(estimator: str, theta: Tensor, x: Tensor) -> None:
    compiled = propc.compile(program, estimator=estimator)
    run = captured(compiled, theta, x)
    for shift in (0.0, 0.3):
        torch.manual_seed(1)
        expected = compiled(theta, x + shift)
        (grad,) = torch.autograd.grad(expected.mean(), theta)
        torch.manual_seed(1)
        (found,) = run(theta, x + shift, *run.held)  # type: ignore[attr-defined]
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(torch.autograd.grad(found.mean(), theta)[0], grad)


def test_what_is_returned_outlives_the_next_replay(theta: Tensor, x: Tensor) -> None:
    run = captured(propc.compile(program, estimator="rp"), theta, x)
    (first,) = run(theta, x, *run.held)  # type: ignore[attr-defined]
    kept = first.detach().clone()
    (grad,) = torch.autograd.grad(first.sum(), theta)
    before = grad.clone()
    (second,) = run(theta, x, *run.held)  # type: ignore[attr-defined]
    torch.autograd.grad(second.sum(), theta)
    assert torch.equal(first.detach(), kept)
    assert torch.equal(grad, before)
    assert run.forward.count == 2  # type: ignore[attr-defined]


def test_two_calls_before_their_reverse_passes(theta: Tensor, x: Tensor) -> None:
    """The second runs step by step, as the first one's memory is not to be written."""
    compiled = propc.compile(program, estimator="tp")
    run = captured(compiled, theta, x)

    def sums(call: Callable[..., Any]) -> tuple[Tensor, ...]:
        torch.manual_seed(3)
        a, b = call(x), call(x - 1)
        return torch.autograd.grad(a.mean() - 2 * b.mean(), theta)

    found = sums(lambda x: run(theta, x, *run.held)[0])  # type: ignore[attr-defined]
    assert run.forward.count == 1  # type: ignore[attr-defined]
    torch.testing.assert_close(found, sums(lambda x: compiled(theta, x)))


def test_a_forward_pass_alone_frees_the_memory(theta: Tensor, x: Tensor) -> None:
    run = captured(propc.compile(program, estimator="tp"), theta, x)
    for _ in range(3):
        run(theta, x, *run.held)  # type: ignore[attr-defined]
    assert run.forward.count == 3  # type: ignore[attr-defined]


def test_a_second_reverse_pass_runs_again_from_the_same_noise(theta: Tensor, x: Tensor) -> None:
    run = captured(propc.compile(program, estimator="tp"), theta, x)
    (cost,) = run(theta, x, *run.held)  # type: ignore[attr-defined]
    (first,) = torch.autograd.grad(cost.mean(), theta, retain_graph=True)
    run(theta, x, *run.held)  # type: ignore[attr-defined]
    state = torch.get_rng_state()
    (second,) = torch.autograd.grad(cost.mean(), theta)
    torch.testing.assert_close(first, second)
    assert torch.equal(state, torch.get_rng_state())


def test_second_derivatives(theta: Tensor, x: Tensor) -> None:
    compiled = propc.compile(program, estimator="rp")
    run = captured(compiled, theta, x)

    def twice(call: Callable[..., Any]) -> Tensor:
        torch.manual_seed(5)
        (grad,) = torch.autograd.grad(call().mean(), theta, create_graph=True)
        return torch.autograd.grad(grad, theta)[0]

    expected = twice(lambda: compiled(theta, x))
    torch.testing.assert_close(twice(lambda: run(theta, x, *run.held)[0]), expected)  # type: ignore[attr-defined]


def test_held_tensors_are_read_where_they_are(x: Tensor) -> None:
    """An optimizer's step is seen; a tensor that has moved is captured anew."""
    weight = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
    compiled = propc.compile(lambda x: program(weight, x), estimator="rp")
    run = captured(compiled, x)

    def check(held: list[Tensor]) -> None:
        torch.manual_seed(2)
        expected = compiled(x)
        torch.manual_seed(2)
        torch.testing.assert_close(run(x, *held)[0], expected)

    with torch.no_grad():
        weight.mul_(2)
    check(run.held)  # type: ignore[attr-defined]
    weight.data = torch.tensor(-0.3, dtype=torch.float64)
    check(run.held)  # type: ignore[attr-defined]


def test_without_a_device_it_says_so() -> None:
    with pytest.raises(propc.errors.BackendError, match="CUDA device"):
        propc.compile(program, estimator="rp", backend="cudagraphs")(torch.tensor(1.0), torch.ones(3, 2))


def test_tensors_elsewhere_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(propc.errors.BackendError, match="some are on cuda:0, cpu"):
        CudaGraphs().require([torch.device("cuda:0"), torch.device("cpu")])
