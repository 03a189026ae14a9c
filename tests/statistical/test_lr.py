"""`lr`: the likelihood-ratio gradient and its baselines."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import oracles
import pytest
import torch
from programs import BASELINES, FAMILIES, OBJECTIVES, neighbour, one_site, own_mean, vector
from stats import assert_less_variance, check, gradient_draws
from torch import Tensor
from torch.distributions import Bernoulli, Normal

import propc

pytestmark = pytest.mark.statistical


def lr(baseline: Any) -> Any:
    return propc.estimator("lr", baseline=baseline)


@pytest.mark.parametrize("baseline", BASELINES)
@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("family", FAMILIES)
def test_one_site(family: str, objective: str, baseline: str) -> None:
    problem = one_site(family, objective)
    compiled = propc.compile(problem.program, estimator=lr(BASELINES[baseline]))
    draws = gradient_draws(compiled, problem.theta, rows=150_000, warmup=baseline == "moving_average")
    check(draws, problem.exact, twin=1.15)


@lru_cache
def small_batches(family: str, baseline: Any) -> Tensor:
    compiled = propc.compile(one_site(family, "quadratic").program, estimator=lr(baseline))
    return gradient_draws(compiled, vector(*FAMILIES[family].theta), rows=3, calls=2500, warmup=1)


@pytest.mark.parametrize("baseline", BASELINES)
@pytest.mark.parametrize("family", ["normal", "categorical"])
def test_small_batches(family: str, baseline: str) -> None:
    """With three rows, a baseline that holds its own row's cost shrinks the gradient by a third."""
    draws, twin = (small_batches(family, choice) for choice in (BASELINES[baseline], own_mean))
    check(draws, one_site(family, "quadratic").exact, twin=twin)


def test_the_leave_one_out_mean_is_what_it_says() -> None:
    """A callable that spells it out gives the same gradients from the same seed."""
    problem = one_site("categorical", "cos")
    named, spelt, other = (
        gradient_draws(propc.compile(problem.program, estimator=lr(choice)), problem.theta, rows=5)
        for choice in ("loo", lambda costs: (costs.sum() - costs) / (len(costs) - 1), neighbour)
    )
    torch.testing.assert_close(named, spelt)
    assert not torch.allclose(named, other)


@pytest.mark.parametrize("baseline", ["loo", "moving_average"])
def test_baselines_lower_the_variance(baseline: str) -> None:
    def program(theta: Tensor, batch: int) -> Tensor:
        return (propc.sample(Normal(theta.expand(batch, -1)[..., 0], 0.5), "x") + 3.0).square()

    with_baseline, without = (
        gradient_draws(propc.compile(program, estimator=lr(choice)), vector(0.5), rows=50_000, warmup=3)
        for choice in (baseline, None)
    )
    assert_less_variance(with_baseline, without, times=4)


def test_a_cost_need_not_be_continuous() -> None:
    def program(theta: Tensor, batch: int) -> Tensor:
        p = theta.expand(batch, -1)
        return (propc.sample(Normal(p[..., 0], p[..., 1]), "x") > 0.5).to(p.dtype)

    theta = vector(0.2, 0.8)
    exact = oracles.gradient(lambda p: 1 - Normal(p[0], p[1]).cdf(torch.tensor(0.5)), theta)
    check(gradient_draws(propc.compile(program, estimator="lr"), theta, rows=150_000), exact)


def test_a_black_box_as_cost() -> None:
    def black_box(x: Tensor) -> Tensor:
        return torch.from_numpy(x.detach().numpy() ** 2)

    def program(theta: Tensor, batch: int) -> Tensor:
        p = theta.expand(batch, -1)
        return propc.opaque(black_box)(propc.sample(Normal(p[..., 0], p[..., 1]), "x"))

    theta = vector(0.5, 0.8)
    check(gradient_draws(propc.compile(program, estimator="lr"), theta, rows=150_000), 2 * theta)


@pytest.mark.parametrize("law", [lambda p: Normal(p, 1.0), lambda p: Bernoulli(logits=p)], ids=["normal", "bernoulli"])
def test_event_dimensions_belong_to_the_row(law: Any) -> None:
    """Three coordinates a row, one cost: a log-probability that is not summed over them is off by 3."""

    def program(theta: Tensor, batch: int) -> Tensor:
        x = propc.sample(law(theta.expand(batch, -1)), "x")
        return torch.cos(x @ vector(0.5, -0.4, 0.8))

    def expectation(p: Tensor) -> Tensor:
        return oracles.expect(
            law(p[0]),
            lambda a: oracles.expect(
                law(p[1]),
                lambda b: oracles.expect(law(p[2]), lambda c: torch.cos(0.5 * a - 0.4 * b + 0.8 * c)),
            ),
        )

    theta = vector(0.3, -0.7, 1.1)
    draws = gradient_draws(propc.compile(program, estimator="lr"), theta, rows=150_000)
    check(draws, oracles.gradient(expectation, theta))
