"""The skeleton of a control variate: unbiased where costs are weighted, summed and in plates, and quieter than `lr`."""

from __future__ import annotations

import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import oracles
import pytest
import torch
from agreement import plainly
from oracles import expect
from stats import assert_less_variance, assert_rejected, check, gradient_draws, hessian_draws
from torch import Tensor
from torch.distributions import Bernoulli, Independent, Normal

import propc

pytestmark = pytest.mark.statistical
SKELETON = Path(__file__).parents[2] / "docs" / "skeletons" / "control_variate_skeleton.py"


@pytest.fixture(scope="module")
def skeleton() -> Any:
    table = propc.estimators.estimator.__globals__["_TABLE"]
    known = dict(table)
    made = runpy.run_path(str(SKELETON), run_name="skeleton")
    table.clear()
    table.update(known)
    return made


@pytest.fixture
def rule(skeleton: Any) -> Any:
    return skeleton["ControlVariateEstimator"]()


def costs(theta: Tensor, batch: int) -> tuple[Tensor, Tensor]:
    p = theta.expand(batch, 2)
    x = propc.sample(Normal(p[..., 0], p[..., 1]), "x")
    y = propc.sample(Normal(torch.sin(x), 1.0), "y")
    return (x - 0.5).square() + x * y, torch.exp(0.5 * x)


def weighted(returned: tuple[Tensor, Tensor]) -> Tensor:
    return 2 * returned[0] + 0.5 * returned[1]


THETA = torch.tensor([0.4, 0.8], dtype=torch.float64)


def exact() -> Tensor:
    def cost(x: Tensor) -> Tensor:
        return 2 * ((x - 0.5).square() + x * x.sin()) + 0.5 * torch.exp(0.5 * x)

    return oracles.gradient(lambda p: expect(Normal(p[0], p[1]), cost), THETA)


def learned(compiled: Callable[..., Any], calls: int = 20) -> Callable[..., Any]:
    """After a few calls."""
    for _ in range(calls):
        gradient_draws(compiled, THETA, rows=1000, cost=weighted)
    return compiled


@pytest.mark.parametrize("backend", ["eager", "inductor"])
def test_of_weighted_costs(rule: Any, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plainly(monkeypatch)
    compiled = learned(propc.compile(costs, estimator={"x": rule, "y": "lr"}, backend=backend))
    draws = gradient_draws(compiled, THETA, rows=200_000, cost=weighted)
    check(draws, exact(), twin=1.1)
    plain = gradient_draws(propc.compile(costs, estimator="lr"), THETA, rows=200_000, cost=weighted)
    assert_less_variance(draws, plain, times=1.5)


def test_a_surrogate_that_has_seen_the_draw_is_rejected(rule: Any, skeleton: Any) -> None:
    """The same rule, with h(x) put in the place of its mean."""

    class Twin(skeleton["Surrogate"]):  # type: ignore[misc]
        def features(self, x: Tensor, square: Tensor, lead: int) -> Tensor:
            return super().features(x, x.square(), lead)

    compiled = learned(propc.compile(costs, estimator={"x": rule, "y": "lr"}))
    for module in compiled.modules():
        if type(module).__name__ == "Surrogate":
            module.__class__ = Twin
    assert_rejected(gradient_draws(compiled, THETA, rows=200_000, cost=weighted), exact())


def test_second_derivatives(rule: Any) -> None:
    def program(theta: Tensor, batch: int) -> Tensor:
        p = theta.expand(batch, 2)
        return propc.sample(Normal(p[..., 0], p[..., 1]), "x").square() ** 1.5

    compiled = propc.compile(program, estimator=rule)
    for _ in range(10):
        gradient_draws(compiled, THETA, rows=1000)
    compiled.eval()
    right = torch.autograd.functional.hessian(lambda p: expect(Normal(p[0], p[1]), lambda x: x.square() ** 1.5), THETA)
    check(hessian_draws(compiled, THETA, rows=200_000), right, twin=1.2)


def test_of_several_elements_in_a_plate(rule: Any) -> None:
    """Bernoulli elements behind a site with several samples."""

    def program(theta: Tensor, batch: int) -> Tensor:
        z = propc.sample(Normal(torch.zeros(batch), 1.0), "z", estimator=propc.estimator("lr", samples=3))
        x = propc.sample(Independent(Bernoulli(logits=theta.expand(batch, 2)), 1), "x")
        return (x.sum(-1) + 0.1 * z).square()

    compiled = propc.compile(program, estimator=rule)
    for _ in range(10):
        gradient_draws(compiled, THETA, rows=500)
    p = THETA.sigmoid()
    right = p * (1 - p) * (1 + 2 * p.flip(0))
    draws = gradient_draws(compiled, THETA, rows=100_000)
    check(draws, right, twin=1.1)
    assert_less_variance(draws, gradient_draws(propc.compile(program, estimator="lr"), THETA, rows=100_000))
