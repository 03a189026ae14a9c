"""Second derivatives, by differentiating a gradient estimate again."""

from __future__ import annotations

from typing import Any

import oracles
import pytest
import torch
from programs import FAMILIES, OBJECTIVES, Problem, one_site, vector
from stats import assert_rejected, check, hessian_draws
from torch import Tensor
from torch.distributions import Bernoulli, Normal

import propc

pytestmark = pytest.mark.statistical

AT_NORMAL: dict[str, Any] = {
    "rp": "rp",
    "lr": "lr",
    "lr-none": propc.estimator("lr", baseline=None),
    "tp": "tp",
}


def draws_and_exact(problem: Problem, estimator: Any, **shape: int) -> tuple[Tensor, Tensor]:
    compiled = propc.compile(problem.program, estimator=estimator)
    exact = oracles.hessian(problem.expectation, problem.theta)
    return hessian_draws(compiled, problem.theta, **shape), exact


@pytest.mark.parametrize("objective", ["quadratic", "exp", "cos"])
@pytest.mark.parametrize("estimator", AT_NORMAL)
def test_hessian_at_a_normal_site(estimator: str, objective: str) -> None:
    check(*draws_and_exact(one_site("normal", objective), AT_NORMAL[estimator], rows=400_000), twin=1.4)


@pytest.mark.parametrize("baseline", ["loo", None])
@pytest.mark.parametrize("family", ["bernoulli", "categorical", "gamma"])
def test_hessian_of_other_laws(family: str, baseline: str | None) -> None:
    estimator = propc.estimator("lr", baseline=baseline)
    check(*draws_and_exact(one_site(family, "exp"), estimator, rows=400_000), twin=1.4)


@pytest.mark.parametrize("estimator", AT_NORMAL)
def test_hessian_of_a_chain(estimator: str) -> None:
    """Two sites and θ in the cost: mixed derivatives between the paths."""

    def program(theta: Tensor, batch: int) -> Tensor:
        p = theta.expand(batch, -1)
        x = propc.sample(Normal(p[..., 0], 0.6), "x")
        y = propc.sample(Normal(p[..., 1] * torch.sin(x), 0.8), "y")
        return torch.cos(y + p[..., 0])

    def expectation(p: Tensor) -> Tensor:
        return oracles.expect(
            Normal(p[0], 0.6),
            lambda x: oracles.expect(Normal(p[1] * torch.sin(x), 0.8), lambda y: torch.cos(y + p[0])),
        )

    problem = Problem(program, vector(0.5, 1.2), expectation)
    check(*draws_and_exact(problem, AT_NORMAL[estimator], rows=400_000), twin=1.4)


def test_hessian_in_small_batches() -> None:
    """The rows of a batch meet in the baseline, which must not enter the second derivative twice."""
    problem = one_site("bernoulli", "exp")
    check(*draws_and_exact(problem, "lr", rows=4, calls=2000), twin=1.5)


SEVERAL: dict[str, Any] = {
    "lr": propc.estimator("lr", samples=3),
    "lr-average": propc.estimator("lr", samples=3, baseline="moving_average"),
    "rp": propc.estimator("rp", samples=3),
}


@pytest.mark.parametrize("estimator", SEVERAL)
def test_hessian_with_several_samples(estimator: str) -> None:
    """In plates, vmapped or rewritten, a gradient can be differentiated again."""
    check(*draws_and_exact(one_site("normal", "cos"), SEVERAL[estimator], rows=200_000), twin=1.4)


def test_hessian_with_several_samples_of_a_discrete_site() -> None:
    check(*draws_and_exact(one_site("bernoulli", "exp"), SEVERAL["lr"], rows=200_000), twin=1.4)


def binary_chain(theta: Tensor, batch: int) -> Tensor:
    """A site that depends on another, and θ in the cost."""
    p = theta.expand(batch, -1)
    a = propc.sample(Bernoulli(logits=p[..., 0]), "a")
    b = propc.sample(Bernoulli(logits=p[..., 1] * (2 * a - 1)), "b")
    return torch.sin(a + b * p[..., 0]) + a * b


def binary_expectation(theta: Tensor) -> Tensor:
    p, total = torch.sigmoid(theta[0]), theta.new_zeros(())
    for a in (0.0, 1.0):
        q = torch.sigmoid(theta[1] * (2 * a - 1))
        for b in (0.0, 1.0):
            weight = (p if a else 1 - p) * (q if b else 1 - q)
            total = total + weight * (torch.sin(a + b * theta[0]) + a * b)
    return total


def test_the_hessian_of_an_enumeration_is_exact() -> None:
    theta = vector(0.5, 1.2)
    compiled = propc.compile(binary_chain, estimator="enumerate")
    exact = oracles.hessian(binary_expectation, theta)
    torch.testing.assert_close(hessian_draws(compiled, theta, rows=3), exact.expand(3, 2, 2))


def test_hessian_of_samples_inside_an_enumeration() -> None:
    problem = Problem(binary_chain, vector(0.5, 1.2), binary_expectation)
    for estimators in ({"a": "enumerate", "b": SEVERAL["lr"]}, {"a": SEVERAL["lr"], "b": "enumerate"}):
        check(*draws_and_exact(problem, estimators, rows=100_000), twin=1.4)


@pytest.mark.parametrize("family", ["normal", "categorical"])
def test_a_surrogate_loss_is_right_once_and_wrong_twice(family: str) -> None:
    """The biased twin: f·log p with f held fixed, which the Hessian check rejects."""
    law, theta = FAMILIES[family]
    f = OBJECTIVES["cos"]

    def surrogate(theta: Tensor, batch: int) -> Tensor:
        dist = law(theta.expand(batch, -1))
        x = dist.sample()
        return f(x.to(theta.dtype)) * dist.log_prob(x)

    exact = oracles.hessian(one_site(family, "cos").expectation, vector(*theta))
    assert_rejected(hessian_draws(surrogate, vector(*theta)), exact)
