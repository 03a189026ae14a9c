"""`rp`: the pathwise gradient."""

from __future__ import annotations

import oracles
import pytest
import torch
from programs import CONTINUOUS, OBJECTIVES, one_site, vector
from stats import check, gradient_draws
from torch import Tensor
from torch.distributions import Gamma, Normal

import propc

pytestmark = pytest.mark.statistical


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("family", CONTINUOUS)
def test_one_site(family: str, objective: str) -> None:
    problem = one_site(family, objective)
    draws = gradient_draws(propc.compile(problem.program, estimator="rp"), problem.theta)
    check(draws, problem.exact)


def test_the_path_from_site_to_site_is_followed() -> None:
    """A twin that loses the path through both sites is rejected."""

    def program(theta: Tensor, batch: int) -> Tensor:
        p = theta.expand(batch, -1)
        x = propc.sample(Gamma(p[..., 0], 2.0), "x")
        return torch.cos(propc.sample(Normal(x, p[..., 1]), "y"))

    def expectation(p: Tensor) -> Tensor:
        return oracles.expect(Gamma(p[0], 2.0), lambda x: oracles.expect(Normal(x, p[1]), torch.cos))

    theta = vector(1.5, 0.6)
    draws = gradient_draws(propc.compile(program, estimator="rp"), theta)
    check(draws, oracles.gradient(expectation, theta), twin=vector(0.0, 1.0) * draws)
