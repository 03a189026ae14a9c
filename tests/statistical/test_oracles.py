"""The oracles, against closed forms and each other."""

from __future__ import annotations

import math

import oracles
import pytest
import torch
from programs import vector
from torch import Tensor
from torch.distributions import Bernoulli, Beta, Categorical, Gamma, MixtureSameFamily, Normal

pytestmark = pytest.mark.statistical

CLOSED_FORMS = [
    (lambda p: Normal(*p), torch.square, lambda p: p[0] ** 2 + p[1] ** 2, (0.4, 0.7)),
    (
        lambda p: Normal(*p),
        lambda x: torch.cos(2 * x),
        lambda p: torch.cos(2 * p[0]) * torch.exp(-2 * p[1] ** 2),
        (0.4, 0.7),
    ),
    (lambda p: Gamma(*p), torch.square, lambda p: p[0] * (p[0] + 1) / p[1] ** 2, (2.5, 1.3)),
    (lambda p: Gamma(*p), lambda x: torch.exp(-0.5 * x), lambda p: (p[1] / (p[1] + 0.5)) ** p[0], (2.5, 1.3)),
    (lambda p: Beta(*p), torch.square, lambda p: p[0] * (p[0] + 1) / (p.sum() * (p.sum() + 1)), (1.8, 2.6)),
    (lambda p: Bernoulli(logits=p[0]), torch.exp, lambda p: 1 + (math.e - 1) * p[0].sigmoid(), (0.3,)),
    (
        lambda p: Categorical(logits=p),
        lambda x: x.double() ** 2,
        lambda p: p.softmax(0) @ vector(0, 1, 4),
        (0.2, -0.4, 0.5),
    ),
]


@pytest.mark.parametrize(("law", "f", "closed_form", "theta"), CLOSED_FORMS)
def test_expect(law, f, closed_form, theta) -> None:
    theta = vector(*theta)
    torch.testing.assert_close(
        oracles.gradient(lambda p: oracles.expect(law(p), f), theta), oracles.gradient(closed_form, theta)
    )


def test_hessian() -> None:
    def expectation(p: Tensor) -> Tensor:
        return oracles.expect(Normal(p[0], p[1]), lambda x: x**3)  # m³ + 3ms²

    exact = torch.tensor([[6 * 0.4, 6 * 0.7], [6 * 0.7, 6 * 0.4]])
    torch.testing.assert_close(oracles.hessian(expectation, vector(0.4, 0.7)), exact)


def test_expectations_nest() -> None:
    value = oracles.expect(Normal(0.5, 1.0), lambda x: oracles.expect(Normal(2 * x, 1.0), lambda y: x * y))
    torch.testing.assert_close(value, torch.tensor(2 * (0.25 + 1.0)))


def test_independent_expectations_nest() -> None:
    """E[(a + b + c)²] of laws that do not depend on each other, one of them discrete."""
    a, b, c = Normal(0.5, 1.0), Bernoulli(torch.tensor(0.3)), Gamma(torch.tensor(2.0), torch.tensor(1.0))
    value = oracles.expect(a, lambda x: oracles.expect(b, lambda y: oracles.expect(c, lambda z: (x + y + z) ** 2)))
    torch.testing.assert_close(value, torch.tensor(1.0 + 0.21 + 2.0 + 2.8**2))


def test_mixture() -> None:
    mixture = MixtureSameFamily(Categorical(logits=vector(0.3, -0.2)), Normal(vector(-1, 1), vector(0.5, 0.7)))
    torch.testing.assert_close(oracles.expect(mixture, torch.square), mixture.variance + mixture.mean**2)


def test_multivariate() -> None:
    tril = torch.tensor([[1.0, 0.0], [0.5, 0.8]])
    value = oracles.expect_multivariate(vector(0.2, -0.3), tril, lambda x: x[:, 0] * x[:, 1])
    torch.testing.assert_close(value, torch.tensor(0.5 - 0.06))


def test_outcomes_are_enumerated_where_later_choices_depend_on_earlier() -> None:
    def model(choose: oracles.Choose) -> Tensor:
        first = choose(Bernoulli(torch.tensor(0.25)))
        return 10 * first + choose(Bernoulli(torch.tensor(0.9 if first else 0.5)))

    expected = 0.25 * 10 + 0.25 * 0.9 + 0.75 * 0.5
    torch.testing.assert_close(oracles.enumerate_outcomes(model), torch.tensor(expected))


def test_joint_outcomes_are_those_of_the_laws_one_by_one() -> None:
    probs = [vector(0.2, 0.5, 0.3), vector(0.6, 0.4)]

    def f(z: Tensor) -> Tensor:
        return torch.cos(z[..., 0] + 3.0 * z[..., 1])

    def model(choose: oracles.Choose) -> Tensor:
        return f(torch.stack([choose(Categorical(p)) for p in probs]))

    torch.testing.assert_close(oracles.expect_joint(probs, f), oracles.enumerate_outcomes(model))


DIAMOND = [("θ", "a"), ("a", "b"), ("a", "c"), ("b", "L"), ("c", "L"), ("θ", "L"), ("b", "M")]


def test_paths() -> None:
    assert sorted(oracles.paths(DIAMOND, "a", "L")) == [("a", "b", "L"), ("a", "c", "L")]
    assert oracles.paths(DIAMOND, "θ", "L", avoiding=["a"]) == [("θ", "L")]
    assert oracles.influences(DIAMOND, "abc", "LM") == {
        ("a", "L"),
        ("a", "M"),
        ("b", "L"),
        ("b", "M"),
        ("c", "L"),
    }
    assert oracles.direct_influences(DIAMOND, ["θ", "a"], "abc") == {("θ", "a"), ("a", "b"), ("a", "c")}


def test_chaotic_rnn_against_differences_of_a_simulation() -> None:
    """Five steps are not chaotic yet: common random numbers give an accurate difference."""
    weight, width = torch.tensor([[-5.0, -25.0], [5.0, 25.0]]), 1e-3
    noise = 0.001 * torch.randn(5, 50_000, 2)

    def losses(beta: float) -> Tensor:
        x = torch.tensor([0.35, 0.55]).expand(50_000, 2)
        for t in range(5):
            x = torch.sigmoid(beta * (x @ weight)) + noise[t]
        return 0.5 * (1 - x).square().sum(-1)

    slope = (losses(2.4 + width) - losses(2.4 - width)) / (2 * width)
    stderr = (slope.std() / len(slope) ** 0.5).item()
    assert abs(slope.mean().item() - oracles.chaotic_rnn_gradient(2.4, 5)) < 5 * stderr + 1e-5


def test_chaotic_rnn_at_the_published_setting() -> None:
    """β = 2.4 after 100 steps: 0.0228 ± 0.0013 by simulation."""
    assert oracles.chaotic_rnn_gradient(2.4, 100) == pytest.approx(0.02346, abs=2e-5)
