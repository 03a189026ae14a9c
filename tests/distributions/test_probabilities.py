"""Probabilities of discrete laws that were given by `probs`: torch's own inside, and right where torch clamps them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import (
    Bernoulli,
    Binomial,
    Categorical,
    Geometric,
    Independent,
    MixtureSameFamily,
    Multinomial,
    NegativeBinomial,
    Normal,
    OneHotCategorical,
)

import propc
from propc.distributions.probabilities import by_probs, log_prob, probabilities


def mixture(p: Tensor) -> MixtureSameFamily:
    return MixtureSameFamily(Categorical(p), Normal(torch.arange(4.0).expand(p.shape), 1.0))


def wide_mixture(p: Tensor) -> Independent:
    component = Independent(Normal(torch.arange(12.0).reshape(4, 3).expand(*p.shape, 3), 1.0), 1)
    return Independent(MixtureSameFamily(Categorical(p), component), 1)


LAWS: dict[str, Callable[[Any], Any]] = {
    "bernoulli": lambda p: Bernoulli(p),
    "bernoulli by logits": lambda p: Bernoulli(logits=p),
    "independent": lambda p: Independent(Bernoulli(p), 1),
    "categorical": lambda p: Categorical(p),
    "categorical by logits": lambda p: Categorical(logits=p),
    "one-hot": lambda p: OneHotCategorical(p),
    "independent one-hot": lambda p: Independent(OneHotCategorical(p), 1),
    "binomial": lambda p: Binomial(torch.arange(4.0), p),
    "multinomial": lambda p: Multinomial(4, p),
    "negative binomial": lambda p: NegativeBinomial(torch.arange(1.0, 5.0), p),
    "geometric": lambda p: Geometric(p),
    "mixture": mixture,
    "wide mixture": wide_mixture,
    "mixture of bernoulli": lambda p: MixtureSameFamily(Categorical(p), Bernoulli(p)),
}
COUNTABLE = ["bernoulli", "bernoulli by logits", "categorical", "categorical by logits", "one-hot"]


@pytest.mark.parametrize("law", LAWS)
def test_it_is_torchs_inside(law: str) -> None:
    torch.manual_seed(0)
    p = torch.rand(5, 4, dtype=torch.float64, requires_grad=True)
    x = LAWS[law](p).sample((7,))
    ours, theirs = log_prob(LAWS[law](p), x), LAWS[law](p).log_prob(x)
    torch.testing.assert_close(ours, theirs)
    weights = torch.randn_like(ours)
    torch.testing.assert_close(*(torch.autograd.grad((each * weights).sum(), p)[0] for each in (ours, theirs)))


@pytest.mark.parametrize("law", COUNTABLE)
def test_the_table_is_torchs_inside(law: str) -> None:
    p = torch.rand(5, 4, dtype=torch.float64, requires_grad=True)
    support = LAWS[law](p).enumerate_support(expand=False)
    ours = probabilities(LAWS[law](p), support)
    theirs = LAWS[law](p).log_prob(support).exp().expand_as(ours)
    torch.testing.assert_close(ours, theirs)
    weights = torch.randn_like(ours)
    torch.testing.assert_close(*(torch.autograd.grad((each * weights).sum(), p)[0] for each in (ours, theirs)))


def test_what_a_law_was_given_by_is_told_when_it_holds_both() -> None:
    p = torch.tensor([0.2, 0.8])
    for make, given in ((Bernoulli, True), (Categorical, True), (Geometric, True), (OneHotCategorical, True)):
        law, other = make(p), make(logits=p)
        assert (by_probs(law), by_probs(other)) == (given, not given)
        _ = law.logits, other.probs
        assert (by_probs(law), by_probs(other)) == (given, not given)


EDGES = (0.0, 1e-38, 1e-10, 0.5, 1.0)


@pytest.mark.parametrize("estimator", ["enumerate", "local", "mvd", propc.estimator("infer", budget=4)], ids=str)
@pytest.mark.parametrize("p", EDGES)
@pytest.mark.parametrize(
    "law",
    [
        lambda p: Bernoulli(probs=p),
        lambda p: Independent(Bernoulli(probs=p[:, None]), 1),
        lambda p: OneHotCategorical(probs=torch.stack([1 - p, p], -1)),
        lambda p: Categorical(probs=torch.stack([1 - p, p], -1)),
    ],
    ids=["bernoulli", "independent", "one-hot", "categorical"],
)
def test_a_rare_outcome_counts(law: Callable[[Tensor], Any], p: float, estimator: Any) -> None:
    """Value and gradient in float32, of a cost of 1/p where the outcome is 1."""
    cost = 3.8 if p in (0.0, 1.0) else 1 / p

    def program(theta: Tensor) -> Tensor:
        z = propc.sample(law(theta), "z")
        one = z[:, -1] if z.dim() > 1 else z
        return cost * one

    theta = torch.full((3,), p, requires_grad=True)
    costs = propc.compile(program, estimator=estimator)(theta)
    (grad,) = torch.autograd.grad(costs.sum(), theta)
    torch.testing.assert_close(grad, torch.full_like(grad, cost))
    if estimator == "enumerate":
        torch.testing.assert_close(costs, torch.full_like(grad, cost * p))


@pytest.mark.parametrize("p", [1e-10, 0.0])
def test_an_enumerated_class_without_probability_has_its_gradient(p: float) -> None:
    """Through torch's normalization too: of f = (1, 2, 4.8) at (½, ½, p), normalized, it is 4.8 − 1.5."""
    costs = torch.tensor([1.0, 2.0, 4.8])

    def program(probs: Tensor) -> Tensor:
        return propc.sample(OneHotCategorical(probs=probs), "z") @ costs

    probs = torch.tensor([[0.5, 0.5, p]], requires_grad=True)
    (grad,) = torch.autograd.grad(propc.compile(program, estimator="enumerate")(probs).sum(), probs)
    torch.testing.assert_close(grad, torch.tensor([[-0.5, 0.5, 3.3]]))


@pytest.mark.parametrize("make", [Bernoulli, lambda probs: Binomial(1, probs=probs)], ids=["bernoulli", "binomial"])
@pytest.mark.parametrize("p", [1e-10, 1e-20])
def test_the_score_of_what_is_drawn_nearly_always(make: Callable[..., Any], p: float) -> None:
    """∂ log(1 − p) = −1/(1 − p), and not the 0 of a clamped logit."""
    theta = torch.full((2,), p, requires_grad=True)
    (grad,) = torch.autograd.grad(log_prob(make(probs=theta), torch.zeros(2)).sum(), theta)
    torch.testing.assert_close(grad, -torch.ones(2))


@pytest.mark.parametrize("p", [1e-10, 1e-30])
def test_the_score_of_a_rare_draw(p: float) -> None:
    theta = torch.full((1,), p, requires_grad=True)
    for law, draw in (
        (Bernoulli(theta), torch.ones(1)),
        (Binomial(3, theta), torch.ones(1)),
        (NegativeBinomial(3.0, theta), torch.ones(1)),
        (Independent(Bernoulli(theta), 1), torch.ones(1)),
    ):
        (grad,) = torch.autograd.grad(log_prob(law, draw).sum(), theta)
        torch.testing.assert_close(grad * theta, torch.ones(1))


def test_a_component_without_weight_has_its_share_in_the_score() -> None:
    """∂ log Σ p_k q_k / ∂ p_k = q_k / Σ p q, also at p_k = 0."""
    p = torch.tensor([[0.0, 1.0]], requires_grad=True)
    x = torch.tensor([0.3])
    normal = Normal(torch.tensor([[2.0, 0.0]]), 1.0)
    law = MixtureSameFamily(Categorical(p), normal)
    (grad,) = torch.autograd.grad(log_prob(law, x).sum(), p)
    one, two = normal.log_prob(x[:, None]).exp()[0]
    torch.testing.assert_close(grad, torch.stack([one / two - 1, torch.zeros(())])[None])


@pytest.mark.parametrize("name", ["gumbel_softmax", "st_gumbel", "gumbel_rao"])
@pytest.mark.parametrize("law", [OneHotCategorical, Bernoulli])
def test_half_precision_at_a_low_temperature(name: str, law: Any) -> None:
    """A value over 1e-4 is infinite there, and the difference of two such is NaN."""
    logits = (10 * torch.randn(50, 4)).half().requires_grad_()
    weights = torch.randn(4).half()

    def program(logits: Tensor) -> Tensor:
        return (propc.sample(law(logits=logits), "z") * weights).sum(-1)

    torch.manual_seed(0)
    costs = propc.compile(program, estimator=propc.estimator(name, temperature=1e-4))(logits)
    (grad,) = torch.autograd.grad(costs.sum(), logits)
    assert costs.isfinite().all()
    assert grad.isfinite().all()
