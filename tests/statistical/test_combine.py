"""`combine`: any set of estimators, weighted by inverse variance."""

from __future__ import annotations

from typing import Any

import pytest
from programs import CONTINUOUS, DISCRETE, FAMILIES, neighbour, one_site, vector
from stats import assert_less_variance, check, gradient_draws
from torch import Tensor
from torch.distributions import Normal

import propc

pytestmark = pytest.mark.statistical

NOISY = ("lr", neighbour)
SETS = {
    "rp+lr": ("rp", "lr"),
    "three": ("rp", "lr", NOISY),
    "lr+lr": ("lr", NOISY),
}


def combine(names: str, **options: Any) -> Any:
    parts = tuple(propc.estimator(p[0], baseline=p[1]) if isinstance(p, tuple) else p for p in SETS[names])
    return propc.estimator("combine", estimators=parts, **options)


CASES = [(family, names) for family in FAMILIES for names in SETS if family in CONTINUOUS or "rp" not in SETS[names]]


@pytest.mark.parametrize("options", [{}, {"per_coordinate": True}, {"weights": "past"}], ids=str)
@pytest.mark.parametrize(("family", "names"), CASES)
def test_one_site(family: str, names: str, options: dict[str, Any]) -> None:
    problem = one_site(family, "exp")
    compiled = propc.compile(problem.program, estimator=combine(names, **options))
    check(gradient_draws(compiled, problem.theta, warmup=options.get("weights") == "past"), problem.exact)


@pytest.mark.parametrize("weights", ["crossfit", "past"])
@pytest.mark.parametrize("family", DISCRETE)
def test_small_batches(family: str, weights: str) -> None:
    problem = one_site(family, "quadratic")
    compiled = propc.compile(problem.program, estimator=combine("lr+lr", weights=weights))
    check(gradient_draws(compiled, problem.theta, rows=16, calls=1500, warmup=2), problem.exact, twin=1.2)


def test_the_noisier_part_is_weighed_down() -> None:
    """Parts that go together cost their mixture at most half as much variance again as the best has."""

    def program(theta: Tensor, batch: int) -> Tensor:
        return (propc.sample(Normal(theta.expand(batch, -1)[..., 0], 1.0), "x") + 3.0).square()

    def draws(estimator: Any) -> Tensor:
        return gradient_draws(propc.compile(program, estimator=estimator), vector(0.5), rows=50_000)

    noisy = propc.estimator("lr", baseline=None)
    mixed = propc.estimator("combine", estimators=("rp", "lr", noisy))
    assert_less_variance(draws(mixed), draws("rp"), times=1 / 1.5)
    assert_less_variance(draws(mixed), draws("lr"), times=4)
    assert_less_variance(draws(mixed), draws(noisy), times=20)
