"""`infer`: an estimator for each site that works there."""

from __future__ import annotations

import oracles
import pytest
import torch
from programs import CONTINUOUS, FAMILIES, OBJECTIVES, one_site, vector
from stats import check, gradient_draws
from torch import Tensor
from torch.distributions import Bernoulli, Categorical, Geometric, Normal

import propc

pytestmark = pytest.mark.statistical


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("family", FAMILIES)
def test_one_site(family: str, objective: str) -> None:
    problem = one_site(family, objective)
    check(gradient_draws(propc.compile(problem.program), problem.theta, rows=150_000), problem.exact)


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
    check(gradient_draws(propc.compile(program), theta, rows=150_000), exact)


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
    check(gradient_draws(propc.compile(program), theta, rows=150_000), oracles.gradient(expectation, theta))


CHOICES = {
    "one run": (lambda t: Bernoulli(logits=t.expand(9, 3)), 1, "lr", "no rsample"),
    "pairs": (lambda t: Bernoulli(logits=t.expand(9, 3)), 2, "disarm", "antithetic pairs"),
    "all neighbours": (lambda t: Bernoulli(logits=t.expand(9, 3)), 4, "local", "3 alternatives"),
    "all": (lambda t: Bernoulli(logits=t.expand(9, 3)), 8, "enumerate", "8 configurations"),
    "classes": (lambda t: Categorical(logits=t.expand(9, 2)), 2, "enumerate", "2 configurations"),
    "neither": (lambda t: Geometric(logits=t.expand(9)), 3, "lr", "3 samples"),
    "alone": (lambda t: Bernoulli(logits=t.expand(1, 3)), 1, "disarm", "antithetic pairs"),
    "no batch": (lambda t: Geometric(logits=t), 1, "lr", "2 samples"),
}


@pytest.mark.parametrize("case", CHOICES)
def test_what_is_chosen_for_a_budget(case: str) -> None:
    make, budget, name, why = CHOICES[case]

    def program(theta: Tensor) -> Tensor:
        z = propc.sample(make(theta), "z").double()
        return z.reshape(len(z), -1).sum(1) if z.dim() else z

    compiled = propc.compile(program, estimator=propc.estimator("infer", budget=budget))
    theta = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    (row,) = compiled.explain(theta).rows
    assert row["estimator"] == name
    assert row["why"].endswith(why)
    compiled(theta).mean().backward()
    assert theta.grad is not None


def test_sites_that_depend_on_each_other_do_not_multiply() -> None:
    def program(theta: Tensor) -> Tensor:
        z: Tensor = theta
        for t in range(4):
            z = propc.sample(Bernoulli(logits=theta.expand(5) + z), f"z{t}")
        return z

    graph = propc.compile(program, estimator=propc.estimator("infer", budget=4)).graph(vector(0.3).requires_grad_()[0])
    assert [site.estimator for site in graph.sites if not site.copy_of] == ["local"] * 4
    many = propc.compile(
        lambda theta: propc.sample(Geometric(logits=theta + propc.sample(Geometric(logits=theta.expand(5)), "a")), "b"),
        estimator=propc.estimator("infer", budget=4),
    ).graph(vector(0.3).requires_grad_()[0])
    assert [(plate.name, plate.size) for plate in many.plates] == [("a", 4)]


def test_a_bad_budget() -> None:
    with pytest.raises(propc.PropcValueError, match="budget=0 must be a positive integer"):
        propc.estimator("infer", budget=0)
