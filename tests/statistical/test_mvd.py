"""`mvd`: every family's derivative against quadrature, with smooth costs and jumps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import oracles
import pytest
import torch
from oracles import expect
from programs import OBJECTIVES, vector
from stats import assert_less_variance, assert_rejected, check, gradient_draws
from torch import Tensor
from torch.distributions import (
    Bernoulli,
    Categorical,
    Distribution,
    Exponential,
    Gamma,
    Independent,
    Normal,
    OneHotCategorical,
    Poisson,
)

import propc

pytestmark = pytest.mark.statistical
sample, estimator = propc.sample, propc.estimator


@dataclass(frozen=True)
class Law:
    """A family, the parameters in which it is differentiated, and its expectations."""

    law: Callable[[Tensor], Distribution]
    theta: tuple[float, ...]
    expectation: Callable[[Distribution, Callable[[Tensor], Tensor]], Tensor] = expect


def _poisson(dist: Distribution, f: Callable[[Tensor], Tensor]) -> Tensor:
    x = torch.arange(80, dtype=torch.float64)
    return (dist.log_prob(x).exp() * f(x)).sum()


LAWS = {
    "normal": Law(lambda p: Normal(p[..., 0], p[..., 1]), (0.4, 0.7)),
    "normal-loc": Law(lambda p: Normal(p[..., 0], 1.3), (0.4,)),
    "normal-scale": Law(lambda p: Normal(-0.2, p[..., 0]), (0.7,)),
    "normal-tied": Law(lambda p: Normal(p[..., 0], p[..., 0]), (0.7,)),
    "gamma": Law(lambda p: Gamma(2.5, p[..., 0]), (1.3,)),
    "gamma-less-than-1": Law(lambda p: Gamma(0.6, p[..., 0]), (0.8,)),
    "exponential": Law(lambda p: Exponential(p[..., 0]), (1.7,)),
    "poisson": Law(lambda p: Poisson(p[..., 0]), (2.2,), _poisson),
    "bernoulli": Law(lambda p: Bernoulli(probs=p[..., 0]), (0.3,)),
    "categorical": Law(lambda p: Categorical(logits=p), (0.2, -0.4, 0.5)),
}
each_law = pytest.mark.parametrize("law", LAWS)


@each_law
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_one_site(law: str, objective: str) -> None:
    known, f = LAWS[law], OBJECTIVES[objective]

    def program(theta: Tensor, batch: int) -> Tensor:
        return f(sample(known.law(theta.expand(batch, len(known.theta))), "x").double())

    theta = vector(*known.theta)
    exact = oracles.gradient(lambda p: known.expectation(known.law(p), lambda x: f(x.double())), theta)
    draws = gradient_draws(propc.compile(program, estimator="mvd"), theta, rows=200_000)
    check(draws, exact, twin=1.15 * draws + 0.05)  # of the linear one the derivative in the scale is 0


JUMPS: dict[str, tuple[Callable[[Tensor], Distribution], tuple[float, ...], Callable[[Distribution], Tensor]]] = {
    "normal": (lambda p: Normal(p[..., 0], p[..., 1]), (0.4, 0.7), lambda d: 1 - d.cdf(vector(1.0)[0])),
    "gamma": (
        lambda p: Gamma(2.5, p[..., 0]),
        (1.3,),
        lambda d: torch.special.gammaincc(vector(2.5)[0], d.rate),  # type: ignore[attr-defined]
    ),
    "exponential": (lambda p: Exponential(p[..., 0]), (1.7,), lambda d: (-d.rate).exp()),  # type: ignore[attr-defined]
    "poisson": (
        lambda p: Poisson(p[..., 0]),
        (2.2,),
        lambda d: 1 - (1 + d.rate) * (-d.rate).exp(),  # type: ignore[attr-defined]
    ),
}


@pytest.mark.parametrize("law", JUMPS)
def test_of_a_jump(law: str) -> None:
    """The probability of x > 1, inside a black box: the pathwise gradient is zero."""
    make, values, tail = JUMPS[law]

    def program(theta: Tensor, batch: int) -> Tensor:
        x = sample(make(theta.expand(batch, len(values))), "x")
        return propc.opaque(lambda x: (x > 1).to(x.dtype))(x)

    theta = vector(*values)
    exact = oracles.gradient(lambda p: tail(make(p)), theta)
    check(gradient_draws(propc.compile(program, estimator="mvd"), theta, rows=200_000), exact, twin=1.1)


# Several elements: one changes at a time, the others keep the draw.


def _elements(theta: Tensor, batch: int) -> Tensor:
    p = theta.expand(batch, 4)
    x = sample(Independent(Normal(p[..., :2], p[..., 2:]), 1), "x")
    return torch.cos(x[..., 0] * x[..., 1]) + (x[..., 0] - x[..., 1]).square()


def _elements_expectation(p: Tensor) -> Tensor:
    def f(x: Tensor, y: Tensor) -> Tensor:
        return torch.cos(x * y) + (x - y).square()

    return expect(Normal(p[0], p[2]), lambda x: expect(Normal(p[1], p[3]), lambda y: f(x, y)))


THETA = vector(0.3, -0.8, 0.6, 0.9)


def test_several_elements() -> None:
    draws = gradient_draws(propc.compile(_elements, estimator="mvd"), THETA, rows=200_000)
    check(draws, oracles.gradient(_elements_expectation, THETA), twin=1.1)


def test_in_chunks_and_in_plates() -> None:
    """Behind samples of another site, and inside an enumeration."""

    def program(theta: Tensor, logit: Tensor, batch: int) -> Tensor:
        z = sample(Bernoulli(logits=logit.expand(batch, 1)[..., 0]), "z")
        p = theta.expand(batch, 4)
        x = sample(Normal(p[..., :2] * (1 + z[..., None]), p[..., 2:]), "x")
        return torch.sin(x[..., 0] * x[..., 1]) + z * x[..., 0]

    def expectation(theta: Tensor, logit: Tensor) -> Tensor:
        def given(z: float) -> Tensor:
            x, y = (Normal(theta[i] * (1 + z), theta[2 + i]) for i in range(2))
            return expect(x, lambda x: expect(y, lambda y: torch.sin(x * y))) + z * 2 * theta[0]

        p = torch.sigmoid(logit[0])
        return (1 - p) * given(0.0) + p * given(1.0)

    params = THETA, vector(-0.4)
    exact = oracles.gradient(expectation, *params)
    for first in ("enumerate", estimator("rloo", samples=2), "lr", "local"):
        compiled = propc.compile(program, estimator={"z": first, "x": estimator("mvd", chunk=4)})
        draws = gradient_draws(compiled, *params, rows=100_000)
        check(draws, exact, twin=1.1)
        assert_rejected(draws * vector(1, 1, 1, 1, 0), exact)


# A chain: the second law depends on the first draw.


def _chain(theta: Tensor, batch: int) -> Tensor:
    p = theta.expand(batch, 3)
    x = sample(Normal(p[..., 0], p[..., 1]), "x")
    n = sample(Poisson(torch.exp(0.5 * x + p[..., 2])), "n")
    return torch.cos(x) * (n - 1).square()


def _chain_expectation(p: Tensor) -> Tensor:
    """For a Poisson n of rate r, E (n − 1)² = r² − r + 1."""

    def given(x: Tensor) -> Tensor:
        rate = torch.exp(0.5 * x + p[2])
        return torch.cos(x) * (rate.square() - rate + 1)

    return expect(Normal(p[0], p[1]), given)


@pytest.mark.parametrize("behind", ["mvd", "lr", estimator("rloo", samples=2)], ids=str)
def test_a_chain(behind: object) -> None:
    theta = vector(0.3, 0.6, 0.2)
    compiled = propc.compile(_chain, estimator={"x": "mvd", "n": behind})
    draws = gradient_draws(compiled, theta, rows=200_000)
    check(draws, oracles.gradient(_chain_expectation, theta), twin=1.1)


# What it is.


def test_the_value_is_that_of_an_ordinary_draw() -> None:
    values = []
    for choice in ("mvd", "lr"):
        torch.manual_seed(0)
        values.append(propc.compile(_elements, estimator=choice)(THETA.clone().requires_grad_(), batch=10).detach())
    assert torch.equal(*values)


def test_finite_laws_are_those_of_local() -> None:
    def program(theta: Tensor, batch: int) -> Tensor:
        z = sample(OneHotCategorical(logits=theta.expand(batch, 2, 3)), "z")
        return torch.cos(z[..., 0, :] @ vector(1, 2, 3)) * (z[..., 1, :] @ vector(0.2, -1, 2))

    theta = torch.linspace(-1, 1, 6, dtype=torch.float64).reshape(2, 3)
    local, mvd = (gradient_draws(propc.compile(program, estimator=e), theta, rows=100) for e in ("local", "mvd"))
    assert torch.equal(local, mvd)


def test_its_variance_is_less_than_that_of_lr() -> None:
    """The coupled draws are near each other; on the jump of a black box too."""

    def program(theta: Tensor, batch: int) -> Tensor:
        x = sample(Normal(theta.expand(batch, 2)[..., 0], theta.expand(batch, 2)[..., 1]), "x")
        return (x > 1).to(x.dtype) + 0.1 * x.square()

    mvd, lr = (
        gradient_draws(propc.compile(program, estimator=choice), vector(0.4, 0.7), rows=100_000)
        for choice in ("mvd", "lr")
    )
    assert_less_variance(mvd, lr)
