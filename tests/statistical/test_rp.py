"""`rp`: the pathwise gradient."""

from __future__ import annotations

import oracles
import pytest
import torch
from stats import check, gradient_draws
from torch import Tensor
from torch.distributions import Gamma, Normal

import propc
from statistical.programs import CONTINUOUS, OBJECTIVES, one_site, vector

pytestmark = pytest.mark.statistical


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("family", CONTINUOUS)
def test_one_site(family: str, objective: str) -> None:
    problem = one_site(family, objective)
    draws = gradient_draws(propc.compile(problem.program, estimator="rp"), problem.theta)
    check(draws, problem.exact)


def test_the_path_from_site_to_site_is_followed() -> None:
    """A twin that cuts the path between the sites is rejected."""

    def program(theta: Tensor, batch: int, cut: bool = False) -> Tensor:
        p = theta.expand(batch, -1)
        x = propc.sample(Gamma(p[..., 0], 2.0), "x")
        y = propc.sample(Normal(x.detach() if cut else x, p[..., 1]), "y")
        return torch.cos(y)

    def expectation(p: Tensor) -> Tensor:
        return oracles.expect(Gamma(p[0], 2.0), lambda x: oracles.expect(Normal(x, p[1]), torch.cos))

    theta = vector(1.5, 0.6)
    twin = gradient_draws(propc.compile(lambda theta, batch: program(theta, batch, cut=True), estimator="rp"), theta)
    draws = gradient_draws(propc.compile(program, estimator="rp"), theta)
    check(draws, oracles.gradient(expectation, theta), twin=twin)
