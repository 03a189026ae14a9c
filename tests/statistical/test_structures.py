"""How sites, costs and parameters hang together: every shape of graph, under every estimator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from oracles import expect, expect_multivariate, gradient
from programs import RECURRENT, Problem, vector
from stats import assert_less_variance, assert_rejected, assert_same_variance, check, gradient_draws
from torch import Tensor
from torch.distributions import (
    Bernoulli,
    Categorical,
    Distribution,
    Gamma,
    Independent,
    MixtureSameFamily,
    MultivariateNormal,
    Normal,
    SigmoidTransform,
    TransformedDistribution,
    Uniform,
    constraints,
    kl_divergence,
)

import propc

pytestmark = pytest.mark.statistical

ESTIMATORS: dict[str, Any] = {
    "rp": "rp",
    "lr": "lr",
    "tp": "tp",
    "tp-per-coordinate": propc.estimator("tp", per_coordinate=True),
    "combine": propc.estimator("combine", estimators=("rp", "lr", propc.estimator("lr", baseline=None))),
    "infer": "infer",
}
sample = propc.sample


# Each structure: a program of θ, and the same expectation by quadrature.


def three_normals(theta: Tensor, batch: int) -> Tensor:
    p = theta.expand(batch, -1)
    x = sample(Normal(p[..., 0], 0.5), "x")
    y = sample(Normal(torch.sin(x) + p[..., 1], 0.7), "y")
    z = sample(Normal(p[..., 0] * y, 0.6), "z")
    return torch.cos(z)


def three_normals_expectation(p: Tensor) -> Tensor:
    return expect(
        Normal(p[0], 0.5),
        lambda x: expect(Normal(torch.sin(x) + p[1], 0.7), lambda y: expect(Normal(p[0] * y, 0.6), torch.cos)),
    )


def diamond(theta: Tensor, batch: int, side: Callable[[Tensor], Tensor] = torch.sin) -> Tensor:
    p = theta.expand(batch, -1)
    x = sample(Normal(p[..., 0], 0.5), "x")
    y = sample(Normal(p[..., 1] * x, 0.6), "y")
    z = sample(Normal(side(x), 0.4), "z")
    return torch.cos(y + z) + y * z


def diamond_expectation(p: Tensor) -> Tensor:
    return expect(
        Normal(p[0], 0.5),
        lambda x: expect(
            Normal(p[1] * x, 0.6),
            lambda y: expect(Normal(torch.sin(x), 0.4), lambda z: torch.cos(y + z) + y * z),
        ),
    )


def shared_value(theta: Tensor, batch: int) -> Tensor:
    """One computed value, and the site before it, are used by two sites and by the cost."""
    p = theta.expand(batch, -1)
    x = sample(Normal(p[..., 0], 0.5), "x")
    h = torch.tanh(p[..., 1] * x)
    y = sample(Normal(h, 0.5), "y")
    z = sample(Normal(2 * h, 0.5), "z")
    return (y - z).square() + torch.sin(y * h + x)


def shared_value_expectation(p: Tensor) -> Tensor:
    def inner(x: Tensor) -> Tensor:
        h = torch.tanh(p[1] * x)
        return expect(
            Normal(h, 0.5),
            lambda y: expect(Normal(2 * h, 0.5), lambda z: (y - z).square() + torch.sin(y * h + x)),
        )

    return expect(Normal(p[0], 0.5), inner)


def independent_branches(theta: Tensor, batch: int) -> Tensor:
    p = theta.expand(batch, -1)
    x = sample(Normal(p[..., 0], 0.5), "x")
    y = sample(Gamma(p[..., 1], 2.0), "y")
    return torch.cos(x) * torch.exp(-y) + x


def independent_branches_expectation(p: Tensor) -> Tensor:
    return expect(Normal(p[0], 0.5), lambda x: torch.cos(x) * expect(Gamma(p[1], 2.0), lambda y: torch.exp(-y)) + x)


def skip(theta: Tensor, batch: int) -> Tensor:
    """The first site reaches the cost through the second, around it, and twice through the product."""
    p = theta.expand(batch, -1)
    x = sample(Normal(p[..., 0], 0.5), "x")
    y = sample(Normal(p[..., 1] + x, 0.6), "y")
    return x * y + x.square() * torch.cos(y)


def skip_expectation(p: Tensor) -> Tensor:
    return expect(
        Normal(p[0], 0.5),
        lambda x: expect(Normal(p[1] + x, 0.6), lambda y: x * y + x.square() * torch.cos(y)),
    )


def intermediate_cost(theta: Tensor, batch: int) -> Tensor:
    p = theta.expand(batch, -1)
    x = sample(Normal(p[..., 0], 0.5), "x")
    early = propc.cost(x.square(), "early")
    y = sample(Normal(p[..., 1] * x, 0.6), "y")
    return early + propc.cost(torch.cos(y), "late")


def intermediate_cost_expectation(p: Tensor) -> Tensor:
    return expect(Normal(p[0], 0.5), lambda x: x.square() + expect(Normal(p[1] * x, 0.6), torch.cos))


def direct_terms(theta: Tensor, batch: int) -> Tensor:
    """A KL divergence and an entropy of the law itself, and θ in the cost."""
    p = theta.expand(batch, -1)
    law = Normal(p[..., 0], torch.exp(p[..., 1]))
    x = sample(law, "x")
    return torch.cos(x + p[..., 1]) + kl_divergence(law, Normal(0.0, 1.5)) - 0.3 * law.entropy()


def direct_terms_expectation(p: Tensor) -> Tensor:
    law = Normal(p[0], torch.exp(p[1]))
    direct = kl_divergence(law, Normal(0.0, 1.5)) - 0.3 * law.entropy()
    return expect(law, lambda x: torch.cos(x + p[1])) + direct


STRUCTURES = {
    "chain": Problem(three_normals, vector(0.4, 0.3), three_normals_expectation),
    "diamond": Problem(diamond, vector(0.4, 0.8), diamond_expectation),
    "shared-value": Problem(shared_value, vector(0.4, 0.8), shared_value_expectation),
    "independent-branches": Problem(independent_branches, vector(0.4, 1.8), independent_branches_expectation),
    "skip": Problem(skip, vector(0.5, 0.3), skip_expectation),
    "shared-parameters": RECURRENT,
    "intermediate-cost": Problem(intermediate_cost, vector(0.5, 0.8), intermediate_cost_expectation),
    "direct-terms": Problem(direct_terms, vector(0.4, -0.3), direct_terms_expectation),
}


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("structure", STRUCTURES)
def test_structure(structure: str, estimator: str) -> None:
    problem = STRUCTURES[structure]
    draws = gradient_draws(propc.compile(problem.program, estimator=ESTIMATORS[estimator]), problem.theta)
    check(draws, problem.exact, twin=1.2)


def test_a_cut_path_is_seen() -> None:
    """The diamond without one of its sides."""
    problem = STRUCTURES["diamond"]
    compiled = propc.compile(diamond, estimator="rp")
    draws = gradient_draws(lambda theta, batch: compiled(theta, batch, lambda x: torch.sin(x).detach()), problem.theta)
    assert_rejected(draws, problem.exact)


# Parameters that reach the cost past every site.


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_a_path_that_meets_no_site(estimator: str) -> None:
    """E[s + 3θ] has gradient 4; an estimator that drops the direct path gives 1."""

    def program(theta: Tensor, batch: int, keep: bool = True) -> Tensor:
        p = theta.expand(batch, -1)[..., 0]
        return sample(Normal(p, 1.0), "s") + 3 * (p if keep else p.detach())

    draws, twin = (
        gradient_draws(
            propc.compile(
                lambda theta, batch: program(theta, batch, keep),  # noqa: B023
                estimator=ESTIMATORS[estimator],
            ),
            vector(0.7),
        )
        for keep in (True, False)
    )
    check(draws, vector(4.0), twin=twin)


def test_a_path_that_meets_no_site_beside_a_discrete_one() -> None:
    def program(theta: Tensor, batch: int) -> Tensor:
        p = theta.expand(batch, -1)[..., 0]
        return sample(Bernoulli(p), "s") + 3 * p

    check(gradient_draws(propc.compile(program, estimator="lr"), vector(0.3)), vector(4.0), twin=0.98)


# Several costs, weighted by the user.

SEVERAL = ["rp", "lr", "tp", "infer"]


def two_costs(theta: Tensor, batch: int) -> tuple[Tensor, Tensor]:
    p = theta.expand(batch, -1)
    x = sample(Normal(p[..., 0], 0.5), "x")
    y = sample(Normal(p[..., 1] * x, 0.6), "y")
    return torch.cos(2 * x), x + y.square()


def two_costs_expectation(p: Tensor) -> Tensor:
    return expect(
        Normal(p[0], 0.5),
        lambda x: 2 * torch.cos(2 * x) + expect(Normal(p[1] * x, 0.6), lambda y: -0.5 * (x + y.square())),
    )


@pytest.mark.parametrize("as_dict", [False, True], ids=["tuple", "dict"])
@pytest.mark.parametrize("estimator", SEVERAL)
def test_several_costs(estimator: str, as_dict: bool) -> None:
    """Each cost carries the weight that the user gives it; leaving one out is seen."""
    theta = vector(0.4, 0.8)

    def program(theta: Tensor, batch: int) -> Any:
        first, second = two_costs(theta, batch)
        return {"a": first, "b": second} if as_dict else (first, second)

    def draws(second: float) -> Tensor:
        keys: Any = ("a", "b") if as_dict else (0, 1)
        return gradient_draws(
            propc.compile(program, estimator=estimator),
            theta,
            cost=lambda out: 2 * out[keys[0]] + second * out[keys[1]],
        )

    check(draws(-0.5), gradient(two_costs_expectation, theta), twin=draws(0.0))


@pytest.mark.parametrize("estimator", SEVERAL)
def test_rows_weighted_by_the_user(estimator: str) -> None:
    problem = STRUCTURES["chain"]
    weights = torch.linspace(-1.0, 3.0, 200_000)  # mean 1
    draws = gradient_draws(
        propc.compile(problem.program, estimator=estimator), problem.theta, cost=lambda costs: weights * costs
    )
    check(draws, problem.exact, twin=1.2)


@pytest.mark.parametrize("estimator", SEVERAL)
def test_a_cost_returned_twice_counts_twice_and_no_more(estimator: str) -> None:
    """A cost that reached its site by both of its names would count four times."""

    def program(theta: Tensor, batch: int) -> tuple[Tensor, Tensor]:
        cost = propc.cost(three_normals(theta, batch), "cost")
        return cost, propc.cost(cost, "again")

    problem = STRUCTURES["chain"]
    draws = gradient_draws(propc.compile(program, estimator=estimator), problem.theta, cost=sum)
    check(draws, 2 * problem.exact, twin=1.1)


# Different estimators at different sites.


def mixed(theta: Tensor, batch: int) -> Tensor:
    p = theta.expand(batch, -1)
    z = sample(Bernoulli(logits=p[..., 0]), "z0")
    x = sample(Normal(p[..., 1] * (2 * z - 1), 0.6), "x0")
    k = sample(Categorical(logits=torch.stack([x, p[..., 0], 0 * x], -1)), "z1")
    y = sample(Normal(x + k, 0.5), "x1")
    return torch.cos(y) + z * x


def mixed_expectation(p: Tensor) -> Tensor:
    def after(z: Tensor, x: Tensor) -> Tensor:
        law = Categorical(logits=torch.stack([x, p[0].expand_as(x), 0 * x], -1))
        return expect(law, lambda k: expect(Normal(x + k, 0.5), torch.cos)) + z * x

    first = Bernoulli(logits=p[0])
    return expect(first, lambda z: expect(Normal(p[1] * (2 * z - 1), 0.6), lambda x: after(z, x)))


@pytest.mark.parametrize("continuous", ["rp", "lr", "tp"])
@pytest.mark.parametrize("form", ["mapping", "function"])
def test_an_estimator_for_each_site(form: str, continuous: str) -> None:
    def choose(site: Any) -> str:
        return "lr" if site.name.startswith("z") else continuous

    theta = vector(0.3, 0.9)
    mapping = {"z*": propc.estimator("lr", baseline=None), "x*": continuous}
    estimator = mapping if form == "mapping" else choose
    draws = gradient_draws(propc.compile(mixed, estimator=estimator), theta, rows=150_000)
    check(draws, gradient(mixed_expectation, theta))


def test_an_estimator_named_at_the_site() -> None:
    def program(theta: Tensor, batch: int) -> Tensor:
        p = theta.expand(batch, -1)
        x = sample(Normal(p[..., 0], 0.5), "x", estimator="lr")
        return torch.cos(sample(Normal(p[..., 1] * x, 0.6), "y"))

    def draws(estimator: str) -> Tensor:
        return gradient_draws(propc.compile(program, estimator=estimator), vector(0.4, 0.8))

    exact = gradient(
        lambda p: expect(Normal(p[0], 0.5), lambda x: expect(Normal(p[1] * x, 0.6), torch.cos)),
        vector(0.4, 0.8),
    )
    check(draws("rp"), exact)
    assert_less_variance(draws("rp")[:, 1:], draws("lr")[:, 1:], times=2)  # "y" alone changes


# Sums of rewards.


def rewards(theta: Tensor, batch: int) -> list[Tensor]:
    p = theta.expand(batch, -1)
    x = torch.zeros(batch)
    found = []
    for t in range(4):
        x = sample(Normal(0.5 * x + p[..., t], 1.0), f"x{t}")
        found.append(torch.cos(x) + x)
    return found


@pytest.mark.parametrize(
    "estimator", ["lr", propc.estimator("lr", baseline=None), {"x*": "lr"}], ids=["loo", "none", "mapping"]
)
def test_a_site_receives_only_the_rewards_after_it(estimator: Any) -> None:
    """A black box that adds the rewards hides which is whose: right still, but noisier at later sites."""
    theta = vector(0.4, -0.3, 0.2, 0.5)
    box = propc.opaque(lambda *terms: sum(terms))

    def program(theta: Tensor, batch: int, add: Callable[..., Any]) -> Tensor:
        return add(*rewards(theta, batch))

    compiled = propc.compile(program, estimator=estimator)
    split, whole = (
        gradient_draws(lambda theta, batch: compiled(theta, batch, add), theta)  # noqa: B023
        for add in (lambda *terms: sum(terms), box)
    )
    exact = _rewards_exact(theta)
    check(split, exact)
    check(whole, exact, twin=1.1)
    assert_less_variance(split[:, 1:], whole[:, 1:])
    assert_same_variance(split[:, :1], whole[:, :1])  # the first site receives them all either way


def _rewards_exact(theta: Tensor) -> Tensor:
    """The states are Normal, their means m ← m/2 + θ_t and variances v ← v/4 + 1."""

    def expectation(p: Tensor) -> Tensor:
        mean, variance, total = torch.zeros(()), 0.0, torch.zeros(())
        for t in range(4):
            mean, variance = 0.5 * mean + p[t], 0.25 * variance + 1.0
            total = total + expect(Normal(mean, variance**0.5), lambda y: torch.cos(y) + y)
        return total

    return gradient(expectation, theta)


# The order of independent branches.


@pytest.mark.parametrize(
    "estimator",
    ["lr", "tp", propc.estimator("tp", per_coordinate=True)],
    ids=["lr", "tp", "tp-per-coordinate"],
)
def test_the_order_of_independent_branches_changes_nothing(estimator: Any) -> None:
    """One branch is tame and the other wild, so that weights or costs that leak between them would show."""

    def tame(p: Tensor) -> Tensor:
        x = sample(Normal(p[..., 0], 0.5), "x0")
        return sample(Normal(x, 0.5), "x1").square()

    def wild(p: Tensor) -> Tensor:
        y = sample(Normal(p[..., 1], 0.5), "y0")
        return torch.cos(9 * sample(Normal(3 * y, 0.2), "y1"))

    def program(theta: Tensor, batch: int, order: int) -> Tensor:
        branches = [tame, wild][::order]
        return sum(branch(theta.expand(batch, -1)) for branch in branches)  # type: ignore[return-value]

    compiled = propc.compile(program, estimator=estimator)
    theta = vector(0.5, 0.3)
    one, other = (
        gradient_draws(lambda theta, batch: compiled(theta, batch, order), theta, seed=order)  # noqa: B023
        for order in (1, -1)
    )
    assert_same_variance(one, other)
    with pytest.raises(AssertionError):
        assert_same_variance(one, 1.05 * other)

    def expectation(p: Tensor) -> Tensor:
        first = expect(Normal(p[0], 0.5**0.5), torch.square)
        return first + torch.cos(27 * p[1]) * torch.exp(-0.5 * 81 * torch.tensor(9 * 0.25 + 0.04))

    exact = gradient(expectation, theta)
    for draws in (one, other):
        check(draws, exact, twin=1.1)


# Distributions with structure of their own.


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_multivariate_normal(estimator: str) -> None:
    def tril(p: Tensor) -> Tensor:
        zero = torch.zeros_like(p[..., 2])
        return torch.stack([torch.stack([p[..., 2], zero], -1), torch.stack([p[..., 3], p[..., 4]], -1)], -2)

    def f(x: Tensor) -> Tensor:
        return torch.cos(x[..., 0] + 2 * x[..., 1]) + x[..., 0] * x[..., 1]

    def program(theta: Tensor, batch: int) -> Tensor:
        p = theta.expand(batch, -1)
        return f(sample(MultivariateNormal(p[..., :2], scale_tril=tril(p)), "x"))

    theta = vector(0.3, -0.2, 0.7, 0.4, 0.6)
    exact = gradient(lambda p: expect_multivariate(p[:2], tril(p), f), theta)
    check(gradient_draws(propc.compile(program, estimator=ESTIMATORS[estimator]), theta), exact, twin=1.2)


@pytest.mark.parametrize(
    "estimator", ["lr", "infer", propc.estimator("lr", baseline=None)], ids=["lr", "infer", "lr-none"]
)
def test_mixture(estimator: Any) -> None:
    def law(p: Tensor) -> Distribution:
        return MixtureSameFamily(Categorical(logits=p[..., :2]), Normal(p[..., 2:4], torch.exp(p[..., 4:6])))

    def program(theta: Tensor, batch: int) -> Tensor:
        return torch.cos(sample(law(theta.expand(batch, -1)), "x"))

    theta = vector(0.3, -0.4, -0.8, 0.9, -0.3, -0.6)
    exact = gradient(lambda p: expect(law(p), torch.cos), theta)
    check(gradient_draws(propc.compile(program, estimator=estimator), theta), exact)


@pytest.mark.parametrize("estimator", ["rp", "lr", "tp", "infer"])
def test_transformed(estimator: str) -> None:
    def program(theta: Tensor, batch: int) -> Tensor:
        p = theta.expand(batch, -1)
        law = TransformedDistribution(Normal(p[..., 0], p[..., 1]), [SigmoidTransform()])
        return torch.cos(3 * sample(law, "x"))

    theta = vector(0.4, 0.9)
    exact = gradient(lambda p: expect(Normal(p[0], p[1]), lambda z: torch.cos(3 * torch.sigmoid(z))), theta)
    check(gradient_draws(propc.compile(program, estimator=estimator), theta), exact)


@pytest.mark.parametrize("estimator", ["lr", "tp"])
def test_a_draw_shifted_and_scaled_in_place_of_its_law(estimator: str) -> None:
    """What is to be done where a support moves. Its score alone would be a biased twin, with mean zero."""

    def program(theta: Tensor, batch: int) -> Tensor:
        p = theta.expand(batch, -1)
        u = p[..., 0] + p[..., 1] * sample(Uniform(torch.zeros(batch), torch.ones(batch)), "u")
        return torch.cos(sample(Normal(u, 0.5), "x"))

    def expectation(p: Tensor) -> Tensor:
        return torch.exp(torch.tensor(-0.125)) * (torch.sin(p[0] + p[1]) - torch.sin(p[0])) / p[1]

    theta = vector(0.4, 0.9)
    exact = gradient(expectation, theta)
    check(gradient_draws(propc.compile(program, estimator=estimator), theta), exact)


class Logistic(Distribution):
    """A user's law with both `rsample` and `log_prob`."""

    arg_constraints = {"loc": constraints.real, "scale": constraints.positive}  # noqa: RUF012
    support = constraints.real
    has_rsample = True

    def __init__(self, loc: Tensor, scale: Tensor, validate_args: bool | None = None) -> None:
        self.loc, self.scale = torch.broadcast_tensors(loc, scale)
        super().__init__(self.loc.shape, validate_args=validate_args)

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        u = torch.rand(self._extended_shape(sample_shape), dtype=self.loc.dtype, device=self.loc.device)
        return self.loc + self.scale * torch.logit(u)

    def log_prob(self, value: Tensor) -> Tensor:
        z = (value - self.loc) / self.scale
        return -z - 2 * torch.nn.functional.softplus(-z) - torch.log(self.scale)


class Sign(Distribution):
    """A user's discrete law: ±1, with `sample` and `log_prob` alone."""

    arg_constraints = {"logit": constraints.real}  # noqa: RUF012

    def __init__(self, logit: Tensor, validate_args: bool | None = None) -> None:
        self.logit = logit
        super().__init__(logit.shape, validate_args=validate_args)

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        p = torch.sigmoid(self.logit).expand(self._extended_shape(sample_shape))
        return 2 * torch.bernoulli(p.detach()) - 1

    def log_prob(self, value: Tensor) -> Tensor:
        return torch.nn.functional.logsigmoid(value * self.logit)


@pytest.mark.parametrize("estimator", ["rp", "lr", "tp", "infer"])
def test_a_users_continuous_law(estimator: str) -> None:
    def program(theta: Tensor, batch: int) -> Tensor:
        p = theta.expand(batch, -1)
        return torch.cos(2 * sample(Logistic(p[..., 0], p[..., 1]), "x"))

    theta = vector(0.5, 0.4)
    exact = gradient(lambda p: expect(Logistic(p[0], p[1]), lambda x: torch.cos(2 * x)), theta)
    check(gradient_draws(propc.compile(program, estimator=estimator), theta), exact)


@pytest.mark.parametrize("estimator", ["lr", "infer"])
def test_a_users_discrete_law(estimator: str) -> None:
    def program(theta: Tensor, batch: int) -> Tensor:
        p = theta.expand(batch, -1)
        return torch.exp(sample(Sign(p[..., 0]), "x") * p[..., 1])

    theta = vector(0.5, 0.4)
    exact = gradient(lambda p: (p[1].exp() * p[0].exp() + (-p[1]).exp()) / (1 + p[0].exp()), theta)
    check(gradient_draws(propc.compile(program, estimator=estimator), theta), exact)


LAWS = {"normal": lambda p: Normal(p, 0.8), "bernoulli": lambda p: Bernoulli(logits=p)}


@pytest.mark.parametrize(
    ("law", "estimator"),
    [("normal", name) for name in ("rp", "lr", "tp", "infer")] + [("bernoulli", name) for name in ("lr", "infer")],
)
def test_independent(law: str, estimator: str) -> None:
    """Two event dimensions, one log-probability a row."""
    mixing = torch.tensor([[0.5, -0.4], [0.8, 0.3]])

    def program(theta: Tensor, batch: int) -> Tensor:
        x = sample(Independent(LAWS[law](theta.expand(batch, -1).unflatten(-1, (2, 2))), 2), "x")
        return torch.cos((x * mixing).sum((-1, -2)))

    def expectation(p: Tensor) -> Tensor:
        """E cos Σ of independent terms: the real part of a product of characteristic functions."""
        product = torch.ones((), dtype=torch.complex128)
        for weight, logit in zip(mixing.flatten(), p, strict=True):
            term = expect(LAWS[law](logit), lambda x: torch.cos(weight * x))  # noqa: B023
            product = product * torch.complex(term, expect(LAWS[law](logit), lambda x: torch.sin(weight * x)))  # noqa: B023
        return product.real

    theta = vector(0.3, -0.7, 1.1, 0.4)
    exact = gradient(expectation, theta)
    check(gradient_draws(propc.compile(program, estimator=estimator), theta), exact)


# Common random numbers.


@pytest.mark.parametrize("last", ["rp", "lr", propc.estimator("lr", samples=2)], ids=["rp", "lr", "lr-samples"])
@pytest.mark.parametrize("first", ["disarm", "enumerate"])
def test_common_noise_in_two_plates(first: str, last: Any) -> None:
    """A site behind two plates of common noise draws each element from what belongs to it."""

    def program(theta: Tensor, batch: int, exchanged: bool = False) -> Tensor:
        p = theta.expand(batch, -1)
        a = sample(Bernoulli(logits=p[..., 0]), "a")
        b = sample(Bernoulli(logits=p[..., 1] + 1.5 * a), "b")
        one, two = (b, a) if exchanged else (a, b)
        return torch.cos(sample(Normal(2 * one - two + p[..., 1], 0.5), "x")) * (1 + a)

    def expectation(p: Tensor) -> Tensor:
        def given(a: Tensor, b: Tensor) -> Tensor:
            return expect(Normal(2 * a - b + p[1], 0.5), torch.cos) * (1 + a)

        return expect(Bernoulli(logits=p[0]), lambda a: expect(Bernoulli(logits=p[1] + 1.5 * a), lambda b: given(a, b)))

    common = propc.estimator(first, noise="common")
    compiled = propc.compile(program, estimator={"a": common, "b": common, "x": last})
    theta = vector(0.3, -0.4)

    def twin(theta: Tensor, batch: int) -> Tensor:
        return compiled(theta, batch, True)

    exact = gradient(expectation, theta)
    check(gradient_draws(compiled, theta, rows=50_000), exact, twin=gradient_draws(twin, theta, rows=50_000))
