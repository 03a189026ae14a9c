"""`infer`: an estimator for each site that works there."""

from __future__ import annotations

import oracles
import pytest
import torch
from statistical.programs import CONTINUOUS, FAMILIES, OBJECTIVES, one_site, vector
from stats import check, gradient_draws
from torch import Tensor
from torch.distributions import Bernoulli, Normal

import propc

pytestmark = pytest.mark.statistical


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("family", FAMILIES)
def test_one_site(family: str, objective: str) -> None:
    problem = one_site(family, objective)
    check(gradient_draws(propc.compile(problem.program), problem.theta, rows=400_000), problem.exact)


@pytest.mark.parametrize("family", CONTINUOUS)
def test_it_is_rp_where_rp_works(family: str) -> None:
    problem = one_site(family, "cos")
    inferred, rp, lr = (
        gradient_draws(propc.compile(problem.program, estimator=e), problem.theta, rows=100)
        for e in ("infer", "rp", "lr")
    )
    torch.testing.assert_close(inferred, rp)
    assert not torch.allclose(inferred, lr)


def test_no_path_to_the_cost() -> None:
    """A black box after a continuous site: pathwise the gradient would be zero."""
    step = propc.opaque(lambda x: (x > 0.5).to(x.dtype))

    def program(theta: Tensor, batch: int) -> Tensor:
        p = theta.expand(batch, -1)
        return step(propc.sample(Normal(p[..., 0], p[..., 1]), "x"))

    theta = vector(0.2, 0.8)
    exact = oracles.gradient(lambda p: 1 - Normal(p[0], p[1]).cdf(torch.tensor(0.5)), theta)
    check(gradient_draws(propc.compile(program), theta, rows=400_000), exact)


def test_a_path_to_one_of_two_costs() -> None:
    """The smooth cost alone would allow a pathwise gradient; the step needs a score."""
    step = propc.opaque(lambda x: (x > 0.5).to(x.dtype))

    def program(theta: Tensor, batch: int) -> Tensor:
        x = propc.sample(Normal(theta.expand(batch, -1)[..., 0], 0.8), "x")
        return torch.cos(x) + step(x)

    def smooth(p: Tensor) -> Tensor:
        return oracles.expect(Normal(p[0], 0.8), torch.cos)

    def expectation(p: Tensor) -> Tensor:
        return smooth(p) + 1 - Normal(p[0], 0.8).cdf(torch.tensor(0.5))

    theta = vector(0.2)
    draws = gradient_draws(propc.compile(program), theta)
    check(draws, oracles.gradient(expectation, theta), twin=1.1)


def test_continuous_and_discrete_sites_together() -> None:
    def program(theta: Tensor, batch: int) -> Tensor:
        p = theta.expand(batch, -1)
        x = propc.sample(Normal(p[..., 0], 0.7), "x")
        b = propc.sample(Bernoulli(logits=p[..., 1] * x), "b")
        y = propc.sample(Normal(x - b, torch.exp(p[..., 2])), "y")
        return torch.cos(y) + b * x

    def expectation(p: Tensor) -> Tensor:
        return oracles.expect(
            Normal(p[0], 0.7),
            lambda x: oracles.expect(
                Bernoulli(logits=p[1] * x),
                lambda b: oracles.expect(Normal(x - b, torch.exp(p[2])), lambda y: torch.cos(y) + b * x),
            ),
        )

    theta = vector(0.4, 1.2, -0.5)
    check(gradient_draws(propc.compile(program), theta, rows=400_000), oracles.gradient(expectation, theta))
