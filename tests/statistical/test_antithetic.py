"""`arm` and `disarm`: known variances, twins with one step of the derivation left out, sites that share a pair."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from oracles import expect_joint, gradient
from problems import PROBLEMS, DiscreteProblem, ripple
from programs import vector
from stats import assert_less_variance, assert_rejected, assert_same_variance, check, gradient_draws
from torch import Tensor
from torch.distributions import Bernoulli, Categorical, Independent, Normal, OneHotCategorical

import propc
from propc.propagators import ArmRule, DisArmRule
from propc.propagators.sites.antithetic import AntitheticRule
from propc.propagators.sites.decision_tree import Pair

pytestmark = pytest.mark.statistical

NAMED: dict[str, DiscreteProblem] = {problem.name: problem for problem in PROBLEMS}
ROWS = 100_000


def draws_of(estimator: Any, problem: DiscreteProblem, rows: int = ROWS) -> Tensor:
    compiled = propc.compile(problem.program, estimator={"z*": estimator})
    return gradient_draws(compiled, *problem.params, rows=rows, cost=problem.cost)


# -- variances ----------------------------------------------------------------------------

KNOWN = [
    ("three-bernoullis", "arm", 0.43),
    ("three-bernoullis", "disarm", 0.37),
    ("three-bernoullis", "rloo", 0.55),
    ("toy-0.499", "arm", 8e-8),
    ("toy-0.499", "disarm", 0.0),
    ("toy-0.2", "disarm", 0.0065),
]


@pytest.mark.parametrize(("name", "estimator", "variance"), KNOWN)
def test_known_variances(name: str, estimator: str, variance: float) -> None:
    found = draws_of(estimator, NAMED[name]).var(0).sum().item()
    assert abs(found - variance) <= 0.05 * variance + 1e-12


@pytest.mark.parametrize("name", ["four-bernoullis", "categorical-10-d3", "one-hot"])
def test_disarm_averages_arm_over_the_random_numbers(name: str) -> None:
    assert_less_variance(draws_of("disarm", NAMED[name]), draws_of("arm", NAMED[name]))


def test_three_pairs_have_a_third_of_the_variance() -> None:
    one, three = (draws_of(propc.estimator("disarm", samples=k), NAMED["four-bernoullis"]) for k in (1, 3))
    assert_same_variance(one / 3**0.5, three)


def test_common_noise_behind_a_pair_lowers_the_variance() -> None:
    """Where the noise adds to the cost of both alike, it cancels."""

    def program(theta: Tensor, batch: int) -> Tensor:
        z = propc.sample(Bernoulli(logits=theta.expand(batch, 2)), "z").sum(-1)
        return z.square() + propc.sample(Normal(z, 2.0), "x")

    theta = vector(0.3, -0.8)
    common, fresh = (
        gradient_draws(
            propc.compile(program, estimator={"z": propc.estimator("disarm", noise=noise), "x": "rp"}), theta, rows=ROWS
        )
        for noise in ("common", "independent")
    )
    assert_less_variance(common, fresh, times=1.4)


# -- biased twins -------------------------------------------------------------------------


class Forgotten(DisArmRule):
    """What only b̃ has met counts for nothing."""

    def coefficients(self, pair: Pair) -> tuple[Tensor, Tensor]:
        first, second = super().coefficients(pair)
        return first, 0 * second


class SameAfterParting(DisArmRule):
    """Decisions that only one of both has met are treated as if both had."""

    def coefficients(self, pair: Pair) -> tuple[Tensor, Tensor]:
        first, _ = super().coefficients(Pair(pair.u, pair.v, pair.p, pair.p, pair.b, pair.opposite, None))
        return first, first


class WithoutTheLogit(DisArmRule):
    """Without the factor σ(|α|)."""

    def coefficients(self, pair: Pair) -> tuple[Tensor, Tensor]:
        difference = pair.b.to(pair.p.dtype) - pair.opposite.to(pair.p.dtype)
        return difference, difference


class ForgottenNumbers(ArmRule):
    """The random numbers of what only b̃ has met count for nothing."""

    def coefficients(self, pair: Pair) -> tuple[Tensor, Tensor]:
        first, second = super().coefficients(pair)
        return first, 0 * second


@pytest.mark.parametrize(
    ("twin", "name"),
    [
        (Forgotten, "categorical-10-d2"),
        (SameAfterParting, "one-hot"),
        (WithoutTheLogit, "three-bernoullis"),
        (ForgottenNumbers, "by-index"),
    ],
)
def test_a_rule_that_is_almost_right_is_rejected(twin: type[AntitheticRule], name: str) -> None:
    assert_rejected(draws_of(twin(), NAMED[name]), NAMED[name].exact)


# -- classes ------------------------------------------------------------------------------


@pytest.mark.parametrize("estimator", ["arm", "disarm"])
@pytest.mark.parametrize("classes", [1, 2, 3, 5, 6, 7, 8])
def test_any_number_of_classes(estimator: str, classes: int) -> None:
    """Both are draws of the distribution; one class has no gradient."""
    logits = 0.9 * torch.cos(torch.arange(1.0, 1 + classes, dtype=torch.float64))
    weights = torch.sin(3.0 * torch.arange(classes, dtype=torch.float64)) + 0.2

    def program(theta: Tensor, batch: int) -> Tensor:
        return weights[propc.sample(Categorical(logits=theta.expand(batch, classes)), "z")]

    compiled = propc.compile(program, estimator=estimator)
    exact = gradient(lambda p: (p.softmax(-1) * weights).sum(), logits)
    draws = gradient_draws(compiled, logits, rows=100_000)
    if classes == 1:
        assert not draws.any()
        return
    check(draws, exact, twin=1.15)
    with torch.no_grad():
        costs = compiled(logits, batch=ROWS)[:, None]
    check(costs, (logits.softmax(-1) * weights).sum().reshape(1), twin=costs + 0.05)


def test_a_class_without_probability_is_never_drawn() -> None:
    logits = vector(0.3, -torch.inf, 0.1, -torch.inf, -torch.inf).requires_grad_()

    def program(theta: Tensor, batch: int) -> Tensor:
        z = propc.sample(OneHotCategorical(logits=theta.expand(batch, 5)), "z")
        return (z * vector(1.0, torch.nan, 2.0, torch.nan, torch.nan).nan_to_num(1e6)).sum(-1)

    for estimator in ("arm", "disarm"):
        loss = propc.compile(program, estimator=estimator)(logits, batch=10_000)
        assert loss.max() <= 2
        (found,) = torch.autograd.grad(loss.mean(), logits)
        assert torch.isfinite(found).all()


# -- several sites ------------------------------------------------------------------------


def apart(first: Tensor, second: Tensor, batch: int) -> Tensor:
    """Two sites that nothing ties, of other shapes; the second has an event dimension and comes by probs."""
    a, b = first.expand(batch, 2, 3), second.expand(batch, 2)
    classes = propc.sample(Categorical(logits=a), "z0").to(a.dtype)
    bits = propc.sample(Independent(Bernoulli(probs=torch.sigmoid(b)), 1), "z1")
    return of_apart(classes, bits)


def of_apart(classes: Tensor, bits: Tensor) -> Tensor:
    return ripple(4 * classes) + torch.cos(classes.sum(-1) + 2 * (bits * vector(1.0, -0.6)).sum(-1))


def apart_expectation(first: Tensor, second: Tensor) -> Tensor:
    laws = [*first.softmax(-1).unbind(), *(torch.stack([torch.sigmoid(-b), torch.sigmoid(b)]) for b in second)]
    return expect_joint(laws, lambda z: of_apart(z[:, :2].to(first.dtype), z[:, 2:].to(first.dtype)))


APART = (torch.tensor([[0.3, -0.2, 0.6], [-0.5, 0.1, 0.2]], dtype=torch.float64), vector(0.4, -0.9))


@pytest.mark.parametrize("estimator", ["arm", "disarm"])
def test_sites_that_share_a_pair(estimator: str) -> None:
    compiled = propc.compile(apart, estimator=estimator)
    draws = gradient_draws(compiled, *APART, rows=ROWS)
    check(draws, gradient(apart_expectation, *APART), twin=1.15)


def test_a_shared_pair_inside_the_plate_of_another_site() -> None:
    """The second site of the pair stands behind one with three draws, the first does not."""

    def program(theta: Tensor, batch: int) -> Tensor:
        p = theta.expand(batch, 3)
        first = propc.sample(Bernoulli(logits=p[..., 0]), "z0")
        middle = propc.sample(Bernoulli(logits=p[..., 1]), "y")
        second = propc.sample(Bernoulli(logits=p[..., 2] - middle), "z1")
        return torch.exp(first - middle) * (1 + second) + first * middle

    def expectation(p: Tensor) -> Tensor:
        def after(y: float) -> Tensor:
            laws = [torch.stack([torch.sigmoid(-a), torch.sigmoid(a)]) for a in (p[0], p[2] - y)]
            return expect_joint(laws, lambda z: torch.exp(z[:, 0] - y) * (1 + z[:, 1]) + z[:, 0] * y)

        q = torch.sigmoid(p[1])
        return (1 - q) * after(0.0) + q * after(1.0)

    theta = vector(0.4, 0.2, -0.6)
    compiled = propc.compile(program, estimator={"z*": "disarm", "y": propc.estimator("lr", samples=3)})
    graph = compiled.graph(theta.clone().requires_grad_(), batch=5)
    assert graph["z1"].plates == ("y", "z0")
    check(gradient_draws(compiled, theta, rows=ROWS), gradient(expectation, theta), twin=1.1)
