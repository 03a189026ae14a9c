"""`local`: where its site stands among others, and what its variance is.

Problems with one discrete site are in `test_discrete.py`.
"""

from __future__ import annotations

from typing import Any

import oracles
import pytest
import torch
from oracles import expect_joint
from problems import PROBLEMS, fixed_logits, probabilities, quadratic_and_sine
from programs import vector
from stats import assert_less_variance, assert_rejected, assert_same_variance, check, gradient_draws
from torch import Tensor
from torch.distributions import Bernoulli, Categorical, Independent, Normal, OneHotCategorical

import propc

pytestmark = pytest.mark.statistical
sample, estimator = propc.sample, propc.estimator

# Three sites, each of which depends on those before it, and two costs.

SLOPES = fixed_logits(2, 3)


def _three(first: Tensor, second: Tensor, third: Tensor, weight: Tensor, batch: int) -> Tensor:
    a, b, c, w = first.expand(batch, 2), second.expand(batch, 3), third.expand(batch, 2), weight.expand(batch, 1)
    z0 = sample(Bernoulli(logits=a), "z0")
    early = torch.cos(z0 @ vector(1.3, -0.4)) * w[..., 0]
    z1 = sample(OneHotCategorical(logits=b + z0 @ SLOPES), "z1")
    z2 = sample(Independent(Bernoulli(logits=c * (1 + z1[..., :1]) - z0.flip(-1)), 1), "z2")
    late = torch.sin(z0.sum(-1) + z1 @ vector(0.5, -1.0, 2.0) + w[..., 0] * (z2 @ vector(1.0, 2.5)))
    return early + 2 * late


PARAMS = vector(0.4, -0.3), vector(0.2, -0.4, 0.5), vector(0.7, -0.6), vector(0.8)


def _three_expectation(first: Tensor, second: Tensor, third: Tensor, weight: Tensor) -> Tensor:
    """By hand, over 4 · 3 · 4 outcomes."""
    total = torch.zeros((), dtype=torch.float64)
    for z0 in torch.cartesian_prod(*[vector(0, 1)] * 2):
        p0 = Bernoulli(logits=first).log_prob(z0).sum().exp()
        early = torch.cos(z0 @ vector(1.3, -0.4)) * weight[0]
        for z1, p1 in zip(torch.eye(3, dtype=torch.float64), (second + z0 @ SLOPES).softmax(-1)):
            laws = probabilities(third * (1 + z1[0]) - z0.flip(-1))
            inner = z0.sum() + z1 @ vector(0.5, -1.0, 2.0)
            late = expect_joint(laws, lambda z2: torch.sin(inner + weight[0] * (z2.double() @ vector(1.0, 2.5))))  # noqa: B023
            total = total + p0 * p1 * (early + 2 * late)
    return total


EXACT = oracles.gradient(_three_expectation, *PARAMS)
WHERE = {
    "everywhere": "local",
    "before lr": {"z0": "local", "*": "lr"},
    "before samples": {"z0": "local", "*": estimator("rloo", samples=3)},
    "before samples of two sites": {"z[01]": "local", "z2": estimator("rloo", samples=2)},
    "before an enumeration": {"z0": "local", "z1": "enumerate", "z2": "lr"},
    "before two enumerations": {"z0": "local", "*": "enumerate"},
    "before an enumeration in samples": {"z0": "local", "z1": estimator("rloo", samples=2), "z2": "enumerate"},
    "behind samples": {"z0": estimator("rloo", samples=3), "*": "local"},
    "behind samples that go on": {"z0": estimator("rloo", samples=2), "z1": "local", "z2": estimator("lr", samples=2)},
    "inside an enumeration": {"z0": "enumerate", "*": "local"},
    "between enumerations": {"z0": "enumerate", "z1": "local", "z2": "enumerate"},
    "inside two enumerations": {"z[01]": "enumerate", "z2": "local"},
    "common noise": {"z0": estimator("local", noise="common"), "*": estimator("local", noise="common")},
    "common noise of samples": {"z0": estimator("local", noise="common"), "*": estimator("rloo", samples=2)},
    "common noise in samples": {"z0": estimator("rloo", samples=2, noise="common"), "*": "local"},
    "common noise of configurations": {"z0": estimator("local", noise="common"), "z1": "enumerate", "z2": "lr"},
    "in chunks": estimator("local", chunk=2),
}


@pytest.mark.parametrize("where", WHERE)
def test_among_other_sites(where: str) -> None:
    """Every parameter counts: losing the gradient of any is seen."""
    compiled = propc.compile(_three, estimator=WHERE[where])
    draws = gradient_draws(compiled, *PARAMS, rows=60_000)
    check(draws, EXACT, twin=1.1)
    for lost in range(len(PARAMS)):
        parts = draws.split([p.numel() for p in PARAMS], -1)
        assert_rejected(torch.cat([part * (i != lost) for i, part in enumerate(parts)], -1), EXACT)


def test_the_exact_gradient_by_hand_is_that_of_enumerate() -> None:
    leaves = [p.clone().requires_grad_() for p in PARAMS]
    cost = propc.compile(_three, estimator="enumerate")(*leaves, batch=1)
    found = torch.cat([g.flatten() for g in torch.autograd.grad(cost.sum(), leaves)])
    torch.testing.assert_close(found, EXACT)


# A continuous site behind it, whose parameters get gradients from the draw alone.


def _mixture(logits: Tensor, loc: Tensor, batch: int) -> Tensor:
    p, m = logits.expand(batch, 2), loc.expand(batch, 2)
    z = sample(Bernoulli(logits=p), "z")
    x = sample(Normal((z * m).sum(-1), 0.5 + z[..., 0]), "x")
    return torch.cos(2 * x) + 0.5 * x.square() * z[..., 1]


def _mixture_expectation(logits: Tensor, loc: Tensor) -> Tensor:
    def of(z: Tensor) -> Tensor:
        z = z.double()
        m, variance = z @ loc, (0.5 + z[:, 0]).square()
        return torch.exp(-2 * variance) * torch.cos(2 * m) + 0.5 * (m.square() + variance) * z[:, 1]

    return expect_joint(probabilities(logits), of)


@pytest.mark.parametrize("noise", ["independent", "common"])
@pytest.mark.parametrize("behind", ["rp", "lr", "tp", estimator("rp", samples=2)], ids=str)
def test_before_a_continuous_site(behind: Any, noise: str) -> None:
    compiled = propc.compile(_mixture, estimator={"z": estimator("local", noise=noise), "x": behind})
    params = vector(-0.3, 0.6), vector(0.7, 1.3)
    exact = oracles.gradient(_mixture_expectation, *params)
    draws = gradient_draws(compiled, *params, rows=200_000)
    check(draws, exact, twin=1.1)
    assert_rejected(draws * vector(0, 0, 1, 1), exact)
    assert_rejected(draws * vector(1, 1, 0, 0), exact)


def test_common_noise_lowers_the_variance() -> None:
    """Differences of costs under the same noise are smaller; that of the first site behind, and of the next."""

    def program(theta: Tensor, batch: int) -> Tensor:
        z = sample(Bernoulli(logits=theta.expand(batch, 2)), "z")
        x = sample(Normal(0.3 * z.sum(-1), 1.0), "x")
        y = sample(Normal(x, 0.5), "y")
        return (x + y).square()

    apart, common = (
        gradient_draws(
            propc.compile(program, estimator={"z": estimator("local", noise=noise), "*": "lr"}),
            vector(0.2, -0.5),
            rows=20_000,
        )
        for noise in ("independent", "common")
    )
    assert_less_variance(common, apart, times=10)


# One draw for the whole batch, and no batch at all.


def _shared(theta: Tensor, batch: int) -> Tensor:
    """Every row of the batch has draws of its own, but the site has the shape [3, batch] without the batch in front."""
    z = sample(Bernoulli(logits=theta.expand(batch, 3).mT), "z")
    return quadratic_and_sine(z.mT)


def test_a_site_without_the_batch_in_front() -> None:
    """To propc it is one draw of 3·B elements: each is changed in turn, and moves one cost."""
    theta = vector(0.3, -1.2, 0.8)
    exact = oracles.gradient(lambda p: expect_joint(probabilities(p), lambda b: quadratic_and_sine(b.double())), theta)
    draws = gradient_draws(propc.compile(_shared, estimator="local"), theta, rows=50, calls=400)
    check(draws, exact, twin=1.1)


def test_a_scalar_cost() -> None:
    """In a plate of 50, so that a call is 50 draws."""

    def program(theta: Tensor) -> Tensor:
        u = sample(Normal(theta.sum(), 1.0), "u", estimator=estimator("rp", samples=50))
        return quadratic_and_sine(sample(Bernoulli(logits=theta + 0 * u), "z"))

    theta = vector(0.3, -1.2, 0.8).requires_grad_()
    exact = oracles.gradient(
        lambda p: expect_joint(probabilities(p), lambda b: quadratic_and_sine(b.double())), theta.detach()
    )
    compiled = propc.compile(program, estimator="local")
    torch.manual_seed(0)
    draws = torch.stack([torch.autograd.grad(compiled(theta), theta)[0] for _ in range(400)])
    check(draws, exact, twin=1.1)


# Code between site and cost.


def test_random_numbers_and_black_boxes_on_the_way() -> None:
    """Noise of the program itself is drawn anew for each alternative; black boxes are called on each."""

    def program(theta: Tensor, batch: int) -> Tensor:
        z = sample(Bernoulli(logits=theta.expand(batch, 2)), "z")
        noise = torch.rand_like(z) + torch.rand(batch, 1)
        boxed = propc.opaque(lambda x: x.cumsum(-1).square())(z * noise)
        return boxed.sum(-1)

    def expectation(theta: Tensor) -> Tensor:
        """E (z₀u₀)² · 2 + E (z₁u₁)² + 2 E z₀u₀z₁u₁, with u = r + s, r and s uniform, s shared."""
        p = torch.sigmoid(theta)
        return 2 * p[0] * 7 / 6 + p[1] * 7 / 6 + 2 * p[0] * p[1] * (1 / 4 + 1 / 2 + 1 / 3)

    theta = vector(0.4, -0.8)
    for noise in ("independent", "common"):
        compiled = propc.compile(program, estimator=estimator("local", noise=noise))
        check(gradient_draws(compiled, theta, rows=100_000), oracles.gradient(expectation, theta), twin=1.1)


def test_a_large_draw_of_classes() -> None:
    """Many classes, some of them impossible."""
    mask = torch.tensor([0.0] * 20 + [-torch.inf] * 5, dtype=torch.float64)

    def program(theta: Tensor, batch: int) -> Tensor:
        z = sample(Categorical(logits=theta.expand(batch, 25) + mask), "z")
        return torch.sin(z.to(theta.dtype) * 0.7)

    theta = fixed_logits(25)
    exact = oracles.gradient(lambda p: ((p + mask).softmax(-1) * torch.sin(torch.arange(25) * 0.7)).sum(), theta)
    draws = gradient_draws(propc.compile(program, estimator="local"), theta, rows=2000)
    torch.testing.assert_close(draws, exact.expand_as(draws))  # one element: nothing is left to chance


def test_probabilities_of_zero_and_one() -> None:
    """There the derivative is one-sided, and right."""

    def program(probs: Tensor, batch: int) -> Tensor:
        return quadratic_and_sine(sample(Bernoulli(probs=probs.expand(batch, 3)), "z"))

    theta = vector(0.0, 1.0, 0.3)
    laws = lambda p: torch.stack([1 - p, p], -1).unbind()  # noqa: E731
    exact = oracles.gradient(lambda p: expect_joint(laws(p), lambda b: quadratic_and_sine(b.double())), theta)
    check(gradient_draws(propc.compile(program, estimator="local"), theta, rows=50_000), exact, twin=1.1)


# Variance.


def test_the_variance_on_three_bernoullis() -> None:
    """0.19 for one estimate; that of two-sample leave-one-out is 0.55."""
    problem = next(problem for problem in PROBLEMS if problem.name == "three-bernoullis")
    local, rloo, other = (
        gradient_draws(propc.compile(problem.program, estimator=choice), *problem.params, rows=200_000, seed=seed)
        for choice, seed in (("local", 0), (estimator("rloo", samples=2), 1), ("local", 2))
    )
    assert abs(local.var(0).sum().item() - 0.19) < 0.005
    assert abs(rloo.var(0).sum().item() - 0.55) < 0.01
    assert_same_variance(local, other)
    assert_less_variance(local, rloo)
