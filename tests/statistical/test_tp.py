"""`tp`: total propagation, at the site and at a target, by scalar and by coordinate."""

from __future__ import annotations

from typing import Any

import oracles
import pytest
import torch
from programs import BASELINES, CONTINUOUS, OBJECTIVES, RECURRENT, neighbour, one_site, vector
from stats import assert_less_variance, check, gradient_draws
from torch import Tensor, nn
from torch.distributions import Normal

import propc

pytestmark = pytest.mark.statistical


def tp(**options: Any) -> Any:
    return propc.estimator("tp", **options)


@pytest.mark.parametrize("weights", ["crossfit", "past", "same"])
@pytest.mark.parametrize("per_coordinate", [False, True], ids=["scalar", "per-coordinate"])
@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("family", CONTINUOUS)
def test_one_site(family: str, objective: str, per_coordinate: bool, weights: str) -> None:
    """In one large batch, where even the bias of weights="same" is far below the standard error."""
    problem = one_site(family, objective)
    compiled = propc.compile(problem.program, estimator=tp(per_coordinate=per_coordinate, weights=weights))
    check(gradient_draws(compiled, problem.theta, rows=100_000, warmup=weights == "past"), problem.exact, twin=1.1)


@pytest.mark.parametrize("baseline", BASELINES)
def test_baselines(baseline: str) -> None:
    problem = one_site("normal", "cos")
    compiled = propc.compile(problem.program, estimator=tp(baseline=BASELINES[baseline]))
    check(gradient_draws(compiled, problem.theta, warmup=1), problem.exact)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"per_coordinate": True},
        {"k_interval": 2},
        {"k_interval": 3, "weights": "past"},
    ],
    ids=str,
)
def test_chain(options: dict[str, Any]) -> None:
    draws = gradient_draws(propc.compile(RECURRENT.program, estimator=tp(**options)), RECURRENT.theta, warmup=1)
    check(draws, RECURRENT.exact, twin=1.1)


@pytest.mark.parametrize("weights", ["crossfit", "past"])
@pytest.mark.parametrize("family", CONTINUOUS)
def test_target(family: str, weights: str) -> None:
    """The target is one shared parameter, which propc expands; each call is a draw."""
    problem = one_site(family, "cos")
    compiled = propc.compile(problem.program, estimator=tp(target="theta", weights=weights))
    check(gradient_draws(compiled, problem.theta, rows=64, calls=1500, warmup=3), problem.exact, twin=1.2)


@pytest.mark.parametrize("target", ["theta", "shift0"])
def test_target_of_a_chain(target: str) -> None:
    """At the shared parameter, and at a node that only the first step meets."""
    estimator: Any = tp(target=target, weights="past")
    if target == "shift0":
        estimator = {"x0": estimator, "*": "rp"}
    draws = gradient_draws(
        propc.compile(RECURRENT.program, estimator=estimator), RECURRENT.theta, rows=64, calls=1500, warmup=3
    )
    check(draws, RECURRENT.exact, twin=1.2)


def test_target_in_a_module() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(1, 1)

        def forward(self, inputs: Tensor) -> Tensor:
            x = propc.sample(Normal(self.layer(inputs)[..., 0], 0.5), "x")
            return torch.cos(2 * x)

    model = Model()
    with torch.no_grad():
        model.layer.weight.fill_(0.8)
        model.layer.bias.fill_(0.3)
    inputs = torch.linspace(-1, 2, 64)[:, None]
    compiled = propc.compile(model, estimator=tp(target="layer.weight"))
    parameters = [model.layer.weight, model.layer.bias]
    grads = [torch.autograd.grad(compiled(inputs).mean(), parameters) for _ in range(1500)]
    draws = torch.stack([torch.cat([g.flatten() for g in pair]) for pair in grads])

    def expectation(p: Tensor) -> Tensor:
        return oracles.expect(Normal(p[0] * inputs[:, 0] + p[1], 0.5), lambda x: torch.cos(2 * x)).mean()

    check(draws, oracles.gradient(expectation, vector(0.8, 0.3)), twin=1.1)


@pytest.mark.parametrize(("frequency", "best", "worst"), [(0.5, "rp", "lr"), (12.0, "lr", "rp")])
def test_variance_is_nearly_that_of_the_better_part(frequency: float, best: str, worst: str) -> None:
    def program(theta: Tensor, batch: int) -> Tensor:
        x = propc.sample(Normal(theta.expand(batch, -1)[..., 0], 1.0), "x")
        return torch.cos(frequency * x)

    draws = {
        name: gradient_draws(propc.compile(program, estimator=name), vector(0.4), rows=50_000)
        for name in ("rp", "lr", "tp")
    }
    assert_less_variance(draws["tp"], draws[best], times=0.8)
    assert_less_variance(draws["tp"], draws[worst], times=2)


def test_a_wrong_weight_would_be_seen() -> None:
    """k·LR + (1 − k)·RP with a biased LR, by hand: the check resolves the part, not just the mixture."""
    problem = one_site("normal", "cos")
    rp, lr = (
        gradient_draws(propc.compile(problem.program, estimator=e), problem.theta)
        for e in ("rp", propc.estimator("lr", baseline=neighbour))
    )
    check(0.5 * rp + 0.5 * lr, problem.exact, twin=0.5 * rp + 0.45 * lr)
