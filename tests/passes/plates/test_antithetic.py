"""Antithetic pairs in the graph: who shares a plate, what is returned, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import zoo
from torch import Tensor
from torch.distributions import Bernoulli, Categorical, Independent, Normal, OneHotCategorical, Poisson

import propc
from propc.errors import EstimatorError, PropcValueError
from propc.ir import Plate
from propc.propagators import DisArmRule

B = 6
THETA = torch.tensor([0.3, -0.4], dtype=torch.float64)
PAIR = "antithetic draws"


def param() -> Tensor:
    return THETA.clone().requires_grad_()


def one(theta: Tensor) -> Tensor:
    return (zoo.bernoullis(theta, B, "z") * theta).sum(-1)


def two(theta: Tensor) -> Tensor:
    return (zoo.bernoullis(theta, B, "a") * zoo.bernoullis(theta, B, "b")).sum(-1)


def bits_behind_a_normal(theta: Tensor) -> Tensor:
    first = zoo.bernoullis(theta, B, "a")
    middle = propc.sample(Normal(first, 1.0), "x")
    return (zoo.bernoullis(theta, B, "free") + propc.sample(Bernoulli(logits=theta + middle), "b")).sum(-1)


# -- the graph ----------------------------------------------------------------------------


def test_a_pair_is_a_plate_of_two() -> None:
    graph = propc.compile(one, estimator="disarm").graph(param())
    assert graph.plates == (Plate("z", 2, PAIR),)
    assert "z  2 antithetic draws, weights 1/2" in str(graph)
    (route,) = graph.routes
    assert (route.source, type(route.baseline).__name__) == ("cost", "NoBaseline")


def test_options() -> None:
    estimator = propc.estimator("arm", samples=3, noise="common", chunk=2)
    assert propc.compile(one, estimator=estimator).graph(param()).plates == (Plate("z", 6, PAIR, common=True, chunk=2),)


def test_sites_that_do_not_influence_each_other_share_a_pair() -> None:
    graph = propc.compile(two, estimator="disarm").graph(param())
    assert graph.plates == (Plate("a", 2, PAIR),)
    assert graph["b"].plates == graph["cost"].plates == ("a",)


def test_sites_that_do_multiply() -> None:
    """`b` depends on `a` through a site of another estimator; `free` joins the pair of `a`."""
    graph = propc.compile(bits_behind_a_normal, estimator={"x": "rp", "*": "disarm"}).graph(param())
    assert {site.name: site.plate for site in graph.sites} == {"a": "a", "x": "", "free": "a", "b": "b"}
    assert graph["cost"].plates == ("b", "a")


def test_other_pairs_stay_apart() -> None:
    for other in ("disarm", propc.estimator("arm", samples=2), "rloo"):
        graph = propc.compile(two, estimator={"a": "disarm" if other == "rloo" else "arm", "b": other}).graph(param())
        apart = other == "rloo" or not isinstance(other, str)
        assert len(graph.plates) == 1 + apart


# -- values -------------------------------------------------------------------------------


@pytest.mark.parametrize("estimator", ["arm", "disarm"])
@pytest.mark.parametrize(
    "law",
    [
        lambda p: Bernoulli(logits=p.expand(B, 3, 2)),
        lambda p: Bernoulli(probs=p.sigmoid().expand(B, 3, 2)),
        lambda p: Independent(Bernoulli(logits=p.expand(B, 3, 2)), 2),
        lambda p: Independent(Bernoulli(logits=p.expand(B, 3, 2)), 3),
        lambda p: Categorical(logits=p.expand(B, 3, 2)),
        lambda p: Categorical(probs=p.softmax(-1).expand(B, 2)),
        lambda p: OneHotCategorical(logits=p.expand(B, 3, 2)),
        lambda p: Independent(OneHotCategorical(probs=p.softmax(-1).expand(B, 3, 2)), 1),
    ],
)
def test_draws_are_in_the_support(estimator: str, law: Any) -> None:
    """Of the same type as other draws; opposite where both outcomes are as likely."""

    def program(theta: Tensor) -> tuple[Tensor, Tensor]:
        z = propc.sample(law(theta), "z")
        return z.double().reshape(B, -1).sum(-1) * theta.sum(), propc.node(z.double(), "seen")

    compiled = propc.compile(program, estimator=estimator)
    theta = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    cost, mean = compiled(theta)
    assert mean.shape == law(theta).sample().shape
    assert torch.equal(mean, torch.full_like(mean, 0.5))  # fair coins: one of each
    torch.autograd.grad(cost.sum(), theta)


def test_without_gradients_the_value_is_the_same() -> None:
    compiled = propc.compile(two, estimator={"*": propc.estimator("disarm", samples=2)})
    values = []
    for theta in (THETA, param()):
        torch.manual_seed(0)
        values.append(compiled(theta).detach())
    torch.testing.assert_close(*values)


def test_chunks_give_the_same() -> None:
    found = []
    for chunk in (None, 1, 4):
        theta = param()
        torch.manual_seed(0)
        estimator = propc.estimator("disarm", samples=3, chunk=chunk)
        found.append(torch.autograd.grad(propc.compile(one, estimator=estimator)(theta).mean(), theta)[0])
    torch.testing.assert_close(found[0], found[1])
    torch.testing.assert_close(found[0], found[2])


@pytest.mark.parametrize("estimator", ["arm", "disarm"])
def test_a_site_and_a_cost_without_the_batch(estimator: str) -> None:
    def program(theta: Tensor) -> Tensor:
        return (propc.sample(Bernoulli(logits=theta), "z") @ theta.detach()).square()

    theta = param()
    loss = propc.compile(program, estimator=propc.estimator(estimator, samples=100_000))(theta)
    (found,) = torch.autograd.grad(loss, theta)
    (wanted,) = torch.autograd.grad(propc.compile(program, estimator="enumerate")(theta), theta)
    torch.testing.assert_close(found, wanted, atol=2e-3, rtol=0)


def test_half_precision_keeps_its_type() -> None:
    theta = torch.zeros(5, dtype=torch.bfloat16, requires_grad=True)
    values = torch.arange(5, dtype=torch.bfloat16)
    for estimator in ("arm", "disarm"):
        compiled = propc.compile(
            lambda p: propc.sample(OneHotCategorical(logits=p.expand(B, 5)), "z") @ values, estimator=estimator
        )
        (found,) = torch.autograd.grad(compiled(theta).sum(), theta)
        assert found.dtype == torch.bfloat16
        assert torch.isfinite(found).all()


# -- what is refused ----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["arm", "disarm"])
@pytest.mark.parametrize(
    ("law", "instead"), [(lambda p: Normal(p, 1.0), "'rp'"), (lambda p: Poisson(p.exp()), "'rloo'")]
)
def test_a_distribution_without_a_rule(name: str, law: Any, instead: str) -> None:
    def program(theta: Tensor) -> Tensor:
        return propc.sample(law(theta.expand(B, 2)), "z").sum(-1)

    with pytest.raises(EstimatorError) as caught:
        propc.compile(program, estimator=name)(param())
    text = str(caught.value)
    for word in ("site 'z' (test_antithetic.py:", f"'{name}' has no rule for", "Bernoulli, Categorical", instead):
        assert word in text
    assert propc.compile(program, estimator=name)(THETA).shape == (B,)  # without a gradient it only draws


def test_a_second_derivative() -> None:
    theta = param()
    loss = propc.compile(one, estimator="disarm")(theta).mean()
    with pytest.raises(EstimatorError, match="site 'z': antithetic pairs give first derivatives only"):
        torch.autograd.grad(loss, theta, create_graph=True)


@pytest.mark.parametrize("options", [{"samples": 0}, {"samples": True}, {"noise": "both"}, {"chunk": 0}])
def test_bad_options(options: dict[str, Any]) -> None:
    (name,) = options
    with pytest.raises(PropcValueError, match=name):
        propc.estimator("arm", **options)


def test_an_option_that_it_does_not_have() -> None:
    with pytest.raises(PropcValueError, match="unknown option 'baseline' of estimator 'disarm'"):
        propc.estimator("disarm", baseline="loo")


def test_inside_another_propagator() -> None:
    class Outer(DisArmRule):
        def plate(self, site: Any, batched: bool) -> None:
            return None

    with pytest.raises(EstimatorError, match="site 'z': antithetic draws need a plate"):
        propc.compile(one, estimator={"z": Outer()})(param())
