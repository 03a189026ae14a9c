"""`gs`, `gs-tp`, `gr`: unbiased where the refitted values are Gaussian, to order 1/B, and only there.

Moments are those of the batch, so rows are no independent draws: here a draw is the gradient of a whole
batch of 10,000 rows, whose bias of order 1/B is far below the standard error of all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from programs import vector
from stats import assert_rejected, assert_same_variance, check, gradient_draws, hessian_draws
from torch import Tensor
from torch.distributions import Gamma, Normal

import propc
from propc.passes import GaussianShaping

pytestmark = pytest.mark.statistical

ROWS, CALLS = 10_000, 100
THETA = vector(0.4, -0.3, 0.7)  # shift, slope, log of a scale
MIX = torch.tensor([[0.8, 0.3], [-0.2, 0.9]], dtype=torch.float64)
WAVE = vector(0.9, -0.6)
SQUARE = torch.tensor([[1.0, 0.4], [0.4, 0.5]], dtype=torch.float64)

COSTS: dict[str, Callable[[Tensor], Tensor]] = {
    "quadratic": lambda x: (x @ SQUARE * x).sum(-1) + x.sum(-1),
    "cos": lambda x: torch.cos(x @ WAVE + 0.4),
    "exp": lambda x: torch.exp(-0.5 * x @ WAVE),
}


def step(x: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
    return x @ MIX * theta[..., 1:2] + theta[..., :1], theta[..., 2:3].exp()


def three_steps(theta: Tensor, batch: int, cost: Callable[[Tensor], Tensor]) -> Tensor:
    p = theta.expand(batch, -1)
    x = propc.sample(Normal(p[..., :1].expand(batch, 2), 0.5), "x0")
    for t in range(1, 3):
        loc, scale = step(x, p)
        x = propc.sample(Normal(loc, scale), f"x{t}")
    return cost(x)


def law(theta: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and covariance of the last state."""
    mean, covariance = theta[0].expand(2), 0.25 * torch.eye(2, dtype=theta.dtype)
    for _ in range(2):
        loc, scale = step(mean, theta)
        mean, covariance = loc, theta[1] ** 2 * MIX.T @ covariance @ MIX + scale**2 * torch.eye(2, dtype=theta.dtype)
    return mean, covariance


def expectation(theta: Tensor, cost: str) -> Tensor:
    """E of the cost under a Gaussian, in closed form."""
    mean, covariance = law(theta)
    if cost == "quadratic":
        return mean @ SQUARE @ mean + (SQUARE * covariance).sum() + mean.sum()
    spread = WAVE @ covariance @ WAVE
    if cost == "cos":
        return torch.cos(mean @ WAVE + 0.4) * torch.exp(-0.5 * spread)
    return torch.exp(-0.5 * mean @ WAVE + 0.125 * spread)


def exact(cost: str, theta: Tensor = THETA) -> Tensor:
    leaf = theta.clone().requires_grad_()
    return torch.autograd.grad(expectation(leaf, cost), leaf)[0]


def draws(program: Callable[..., Any], *passes: Any, estimator: Any = "lr", calls: int = CALLS) -> Tensor:
    compiled = propc.compile(program, estimator=estimator, passes=passes)
    return gradient_draws(compiled, THETA, rows=ROWS, calls=calls)


@pytest.mark.parametrize("cost", COSTS)
@pytest.mark.parametrize("estimator", ["gs", "gs-tp", "gr"])
def test_a_gaussian_chain(estimator: str, cost: str) -> None:
    def program(theta: Tensor, batch: int) -> Tensor:
        return three_steps(theta, batch, COSTS[cost])

    check(draws(program, estimator=estimator), exact(cost), twin=1.15)


PLACES = {
    "every state": ([GaussianShaping(at="x*")], "lr"),
    "the middle": ([GaussianShaping(at="x1")], "lr"),  # a score-function site is behind the node
    "path, then score": ([GaussianShaping(at="x2")], {"x0": "rp", "*": "lr"}),
    "score, then path": ([GaussianShaping(at="x2")], {"x2": "rp", "*": "lr"}),
    "total propagation between": ([GaussianShaping(at="x2")], {"x1": "tp", "*": "lr"}),
    "score before, path behind": ([GaussianShaping(at="x1")], {"x2": "rp", "*": "lr"}),
}


@pytest.mark.parametrize("place", PLACES)
def test_nodes_and_sites_in_every_order(place: str) -> None:
    def program(theta: Tensor, batch: int) -> Tensor:
        return three_steps(theta, batch, COSTS["cos"])

    passes, estimator = PLACES[place]
    check(draws(program, *passes, estimator=estimator), exact("cos"), twin=1.15)


def test_a_way_round_the_node() -> None:
    """One term sees the last state through the node, another as it is."""

    def program(theta: Tensor, batch: int) -> Tensor:
        return three_steps(
            theta, batch, lambda x: COSTS["cos"](propc.node(x @ MIX, "y") @ MIX.inverse()) + COSTS["exp"](x)
        )

    found = draws(program, GaussianShaping(at="y"))
    check(found, exact("cos") + exact("exp"), twin=1.15)


def test_states_in_a_dictionary() -> None:
    """Position and speed are correlated: fitted one by one they give another gradient."""

    def program(theta: Tensor, batch: int) -> Tensor:
        p = theta.expand(batch, -1)
        state = {"speed": propc.sample(Normal(p[..., 0], 0.5), "speed")}
        loc = 2 * state["speed"] * p[..., 1]
        state["position"] = propc.sample(Normal(loc, p[..., 2].exp()), "position")
        return torch.cos(state["position"] + 2 * state["speed"])

    def expected(theta: Tensor) -> Tensor:
        slope = 2 * theta[1] + 2
        return torch.cos(slope * theta[0]) * torch.exp(-0.5 * (0.25 * slope**2 + theta[2].exp() ** 2))

    leaf = THETA.clone().requires_grad_()
    (truth,) = torch.autograd.grad(expected(leaf), leaf)
    apart = draws(program, GaussianShaping(at="position"), GaussianShaping(at="speed", costs="cost"))
    check(draws(program, estimator="gs"), truth, twin=apart)


def test_a_reward_at_every_step() -> None:
    """Each reward sees a Gaussian of its own, and the rollout goes on with the particles."""

    def program(theta: Tensor, batch: int) -> Tensor:
        p = theta.expand(batch, -1)
        x = propc.sample(Normal(p[..., :1].expand(batch, 2), 0.5), "x0")
        total = COSTS["quadratic"](x)
        for t in range(1, 3):
            loc, scale = step(x, p)
            x = propc.sample(Normal(loc, scale), f"x{t}")
            total = total + COSTS["cos"](x)
        return total

    def expected(theta: Tensor) -> Tensor:
        mean, covariance = theta[0].expand(2), 0.25 * torch.eye(2, dtype=theta.dtype)
        total = mean @ SQUARE @ mean + (SQUARE * covariance).sum() + mean.sum()
        for _ in range(2):
            loc, scale = step(mean, theta)
            eye = torch.eye(2, dtype=theta.dtype)
            mean, covariance = loc, theta[1] ** 2 * MIX.T @ covariance @ MIX + scale**2 * eye
            total = total + torch.cos(mean @ WAVE + 0.4) * torch.exp(-0.5 * WAVE @ covariance @ WAVE)
        return total

    leaf = THETA.clone().requires_grad_()
    (truth,) = torch.autograd.grad(expected(leaf), leaf)
    check(draws(program, estimator="gs"), truth, twin=1.15)


def test_a_value_that_is_not_gaussian() -> None:
    """The gradient is that under the Gaussian of the same moments, which differs from the true one."""

    def program(theta: Tensor, batch: int) -> Tensor:
        p = theta.expand(batch, -1)
        return torch.exp(-1.5 * propc.sample(Gamma(p[..., 0].exp(), 1.0), "x"))

    leaf = THETA.clone().requires_grad_()
    shape = leaf[0].exp()  # mean and variance of the law
    (fitted,) = torch.autograd.grad(torch.exp(-1.5 * shape + 0.5 * 1.5**2 * shape), leaf, retain_graph=True)
    (truth,) = torch.autograd.grad(2.5**-shape, leaf)
    found = draws(program, estimator="gs")[:, :1]
    check(found, fitted[:1], twin=1.15)
    assert_rejected(found, truth[:1])


def test_second_derivatives() -> None:
    def program(theta: Tensor, batch: int) -> Tensor:
        return three_steps(theta, batch, COSTS["cos"])

    hessian = torch.autograd.functional.hessian(lambda theta: expectation(theta, "cos"), THETA)
    for estimator in ("gs", "gr"):
        compiled = propc.compile(program, estimator=estimator)
        check(hessian_draws(compiled, THETA, rows=ROWS, calls=60), hessian, twin=1.3)


# ---- many paths -----------------------------------------------------------------------


def paths(theta: Tensor, batch: int, nuisance: int) -> Tensor:
    """Chaotic or not, other paths share the cost with the first, through which the gradient goes."""
    x, others = torch.zeros(batch, dtype=theta.dtype), torch.zeros(batch, nuisance, dtype=theta.dtype)
    for t in range(2):
        x = propc.sample(Normal(torch.sin(x + theta[0]), 0.3), f"x{t}")
        others = propc.sample(Normal(torch.sin(others + 0.4), 0.3), f"others{t}")
    return propc.cost(torch.cos(2 * x) + torch.cos(2 * others).sum(-1), "total")


def variance(estimator: Any, nuisance: int) -> Tensor:
    compiled = propc.compile(lambda theta, batch: paths(theta, batch, nuisance), estimator=estimator)
    return gradient_draws(compiled, THETA[:1], rows=50, calls=1500)


def test_paths_that_share_a_cost_add_no_variance() -> None:
    """Likelihood-ratio variance grows in proportion to the number of paths, shaped variance does not."""
    shaped = propc.estimator("gs", at="x1")
    assert_same_variance(variance(shaped, 1), variance(shaped, 31))
    few, many = (variance({"x*": "lr", "*": "rp"}, n).var().item() for n in (3, 31))
    assert 6 < many / few < 10  # 32 paths, and 4
    assert variance(shaped, 31).var().item() < few
