"""A backend of one's own: the steps that it gets, what it may do with them, and what is refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
import zoo
from torch import Tensor
from torch.distributions import Normal

import propc
from propc.runtime import backends
from propc.runtime.backends import Backend, Report


class Counting(Backend):
    """Runs every step as it is, and counts."""

    name = "counting"
    counts: dict[str, int] = {}  # noqa: RUF012

    def plan(self, executable: Any, values: Sequence[Any]) -> tuple[Any, Report]:
        assert all(values[place] is not None for step in executable.plan for place in step.writes)
        return [self._counted(step) for step in executable.plan], Report(self.name)

    def _counted(self, step: Any) -> Any:
        function: Callable[..., Any] = step.function
        name = step.node.name

        def run(*given: Any) -> Any:
            self.counts[name] = self.counts.get(name, 0) + 1
            return function(*given)

        return replace(step, function=run)


@pytest.fixture(autouse=True)
def table(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(backends, "_TABLE", dict(backends._TABLE))
    monkeypatch.setattr(Counting, "counts", {})
    propc.register_backend("counting")(Counting)
    return


def autoregression(theta: Tensor, steps: int = 4) -> Tensor:
    return zoo.chain(zoo.autoregression(theta, 0.5, torch.sin), theta.expand(6), steps).square()


def scanned(theta: Tensor) -> Tensor:
    def step(state: Tensor) -> Tensor:
        return propc.sample(Normal(torch.sin(theta * state), 0.5), "x")

    return propc.scan(step, theta.expand(6), 20).square()


def same_as_eager(program: Callable[..., Tensor], **options: Any) -> None:
    theta = torch.tensor(0.7, requires_grad=True)
    found = []
    for backend in ("eager", "counting"):
        compiled = propc.compile(program, backend=backend, **options)
        compiled(theta)
        torch.manual_seed(0)
        costs = compiled(theta)
        found.append((costs, *torch.autograd.grad(costs.mean(), theta)))
    for one, other in zip(*found):
        assert torch.allclose(one, other)  # `tp` draws in one go on eager


@pytest.mark.parametrize("estimator", ["rp", "lr", "tp"])
def test_its_steps_run_from_the_second_call_on(estimator: str) -> None:
    same_as_eager(autoregression, estimator=estimator)
    assert Counting.counts["x3"] == Counting.counts["output"] == 1


def test_the_steps_of_a_scan() -> None:
    same_as_eager(scanned, estimator="lr")
    assert max(Counting.counts.values()) > 10  # those of its body


def test_blocks_run_again() -> None:
    same_as_eager(autoregression, estimator="rp", passes=[propc.passes.Checkpoint(blocks=2)])
    assert Counting.counts["x0"] == 2


def test_its_report_is_in_explain() -> None:
    theta = torch.tensor(0.7, requires_grad=True)
    compiled = propc.compile(autoregression, estimator="rp", backend="counting")
    compiled(theta)
    assert "backend counting" in str(compiled.explain(theta))


def test_a_function_may_make_it() -> None:
    @propc.register_backend("made")
    def make() -> Backend:
        return Counting()

    assert "made" in backends.known_backends()
    same_as_eager(autoregression, estimator="rp")


def test_what_is_refused() -> None:
    with pytest.raises(propc.PropcValueError, match=r"'countin'.*Did you mean 'counting'\? Known: .*'eager'"):
        propc.compile(autoregression, backend="countin")
    with pytest.raises(propc.PropcTypeError, match="Derive the class from Backend"):
        propc.register_backend("wrong")(int)  # type: ignore[type-var]
    with pytest.raises(propc.PropcTypeError, match=r"@propc.register_backend\('name'\)"):
        propc.register_backend(Counting)  # type: ignore[arg-type]
    with pytest.raises(propc.PropcValueError, match="the backend name 'inductor' is taken"):
        propc.register_backend("inductor")(type("Other", (Counting,), {}))

    propc.register_backend("nothing")(lambda: 3)  # type: ignore[arg-type, return-value]
    with pytest.raises(propc.PropcTypeError, match="'nothing' gives 3"):
        propc.compile(autoregression, backend="nothing")(torch.tensor(0.7, requires_grad=True))
