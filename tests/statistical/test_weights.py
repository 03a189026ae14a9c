"""Where `tp` takes its weights from: "same" is biased in small batches, "crossfit" along chains."""

from __future__ import annotations

from functools import lru_cache

import oracles
import pytest
import torch
import zoo
from programs import vector
from stats import check, gradient_draws
from torch import Tensor
from torch.distributions import Normal

import propc

pytestmark = pytest.mark.statistical

UNBIASED = ["crossfit", "rehearsed", "past"]


@lru_cache
def batches_of_four(weights: str, per_coordinate: bool) -> Tensor:
    def program(theta: Tensor, batch: int) -> Tensor:
        return propc.sample(Normal(theta.expand(batch, -1)[..., 0], 0.5), "x").square()

    estimator = propc.estimator("tp", weights=weights, per_coordinate=per_coordinate)
    return gradient_draws(propc.compile(program, estimator=estimator), vector(0.7), rows=4, calls=2500, warmup=1)


@pytest.mark.parametrize("weights", UNBIASED)
@pytest.mark.parametrize("per_coordinate", [False, True], ids=["scalar", "per-coordinate"])
def test_batches_of_four(per_coordinate: bool, weights: str) -> None:
    """So small that a weight which sees its own sample, be it through a baseline, is far off."""
    check(batches_of_four(weights, per_coordinate), vector(1.4), twin=batches_of_four("same", per_coordinate))


WEIGHT = torch.tensor([[-5.0, -25.0], [5.0, 25.0]], dtype=torch.float64)


def chaotic_rnn(beta: Tensor, batch: int, horizon: int) -> Tensor:
    """x′ = σ(β·x W) + N(0, 0.001²), L = ½‖1 − x_H‖²."""
    x = torch.tensor([0.35, 0.55], dtype=torch.float64).expand(batch, 2)
    return 0.5 * (1 - zoo.chain(zoo.chaotic_rnn(beta, WEIGHT), x, horizon)).square().sum(-1)


@lru_cache
def rnn_draws(beta: float, batch: int, horizon: int, calls: int, weights: str) -> Tensor:
    compiled = propc.compile(chaotic_rnn, estimator=propc.estimator("tp", target="beta", weights=weights))
    return gradient_draws(
        lambda beta, batch: compiled(beta, batch, horizon), vector(beta), rows=batch, calls=calls, warmup=3
    )


@pytest.mark.parametrize("weights", ["crossfit", "past"])
@pytest.mark.parametrize(("beta", "batch", "horizon", "calls"), [(2.5, 8, 20, 800), (2.4, 100, 50, 500)])
def test_chaotic_rnn(beta: float, batch: int, horizon: int, calls: int, weights: str) -> None:
    """At β = 2.4 and 100 rows, where the bias is documented, and in a smaller batch, where it is larger."""
    exact = vector(oracles.chaotic_rnn_gradient(beta, horizon))
    made = [rnn_draws(beta, batch, horizon, calls, each) for each in (weights, "same")]
    check(made[0], exact, twin=made[1])


@lru_cache
def weighed_at_the_site(weights: str) -> Tensor:
    compiled = propc.compile(chaotic_rnn, estimator=propc.estimator("tp", weights=weights))
    return gradient_draws(lambda beta, batch: compiled(beta, batch, 16), vector(2.5), rows=20, calls=1600)


def test_rehearsed_weights_along_a_chain() -> None:
    """A chain in which the groups of crossfit do not stay independent; in 32,000 draws that is seen."""
    exact = vector(oracles.chaotic_rnn_gradient(2.5, 16))
    check(weighed_at_the_site("rehearsed"), exact, twin=weighed_at_the_site("crossfit"))
