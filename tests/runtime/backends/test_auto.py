"""The backend that measures the others: it keeps the quickest, and leaves no trace."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import zoo
from torch import Tensor
from torch.distributions import Normal

import propc
from propc.runtime.backends import auto

pytestmark = pytest.mark.usefixtures("plain")


def program(theta: Tensor) -> Tensor:
    return (zoo.unit_normal(theta, 8) - 1).square()


def report(compiled: Any) -> Any:
    (found,), *_ = compiled.compiler.cache.values()
    return found.executable.report


@pytest.mark.parametrize("quickest", ["eager", "inductor"])
def test_it_keeps_the_quickest(quickest: str, monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([1.0, 2.0] if quickest == "eager" else [2.0, 1.0])
    monkeypatch.setattr(auto, "seconds", lambda *_: next(times))
    compiled = propc.compile(program, estimator="lr", backend="auto")
    compiled(torch.tensor(0.5, requires_grad=True))
    found = report(compiled)
    assert found.backend == f"auto: {quickest}"
    assert dict(found.measured)[quickest] == 1.0
    assert (found.stages > 0) == (quickest == "inductor")


@pytest.mark.parametrize("estimator", ["tp", propc.estimator("lr", baseline="moving_average")], ids=str)
def test_measuring_leaves_no_trace(estimator: Any) -> None:
    """Neither in the random numbers, nor in what the estimator keeps, nor in gradients."""

    def run(backend: str) -> list[Tensor]:
        theta = torch.tensor(0.5, requires_grad=True)
        compiled = propc.compile(program, estimator=estimator, backend=backend)
        torch.manual_seed(0)
        first = compiled(theta)
        assert theta.grad is None
        first.mean().backward()
        kept = [*compiled.estimator_state.state_dict().values()]
        second = compiled(theta)
        second.mean().backward()
        assert theta.grad is not None
        return [first.detach(), second.detach(), theta.grad, *(each for each in kept if isinstance(each, Tensor))]

    torch.testing.assert_close(run("auto"), run("eager"))


def test_what_it_measures_is_a_forward_and_a_reverse_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    slow = []

    class Slow(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            if not isinstance(grad, torch._subclasses.FakeTensor):
                slow.append(1)
            return grad

    def through(theta: Tensor) -> Tensor:
        return program(Slow.apply(theta))

    compiled = propc.compile(through, estimator="rp", backend="auto")
    compiled(torch.tensor(0.5, requires_grad=True))
    assert len(slow) >= auto.TRIALS


def test_black_boxes_are_not_called_to_be_measured() -> None:
    calls = []

    def box(x: Tensor) -> Tensor:
        calls.append(1)
        return x * 2

    def boxed(theta: Tensor) -> Tensor:
        return propc.opaque(box)(propc.sample(Normal(theta.expand(8), 1.0), "x"))

    plain = propc.compile(boxed, estimator="lr")
    plain(torch.tensor(0.5, requires_grad=True))
    before = len(calls)
    compiled = propc.compile(boxed, estimator="lr", backend="auto")
    compiled(torch.tensor(0.5, requires_grad=True))
    assert len(calls) == 2 * before
    assert "not measured" in report(compiled).backend
