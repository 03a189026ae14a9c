"""Discrete families: draws, noise, relaxations, and the noise given a draw."""

from __future__ import annotations

import pytest
import torch
from stats import assert_rejected, assert_unbiased, check
from torch import Tensor
from torch.distributions import (
    Bernoulli,
    Binomial,
    Categorical,
    Independent,
    Normal,
    OneHotCategorical,
    OneHotCategoricalStraightThrough,
    RelaxedBernoulli,
)

from propc.distributions.families import family
from propc.distributions.perturbed_logits import Binary, Categories, Family
from propc.distributions.spec import take_apart

ROWS = 400_000
FAMILIES = {
    "binary": (Binary(), torch.tensor([-1.2, 0.3, 2.0], dtype=torch.float64)),
    "categories": (Categories(), torch.log_softmax(torch.tensor([0.2, -1.4, 0.9], dtype=torch.float64), -1)),
}
each_family = pytest.mark.parametrize(("kind", "logits"), FAMILIES.values(), ids=FAMILIES)


def rows(logits: Tensor, count: int = ROWS) -> Tensor:
    return logits.expand(count, *logits.shape)


@each_family
def test_draws_have_the_distribution(kind: Family, logits: Tensor) -> None:
    probs = kind.soft(logits)
    twin = kind.draw(rows(kind.soft(0.95 * logits)))
    check(kind.draw(rows(probs)), probs, twin=twin)


@each_family
def test_the_largest_perturbed_logit_has_the_distribution(kind: Family, logits: Tensor) -> None:
    many = rows(logits)
    twin = kind.hard(many + 0.9 * kind.noise(many))
    check(kind.hard(many + kind.noise(many)), kind.soft(logits), twin=twin)


def features(b: Tensor, z: Tensor) -> Tensor:
    """Functions of a draw and its perturbed logits whose means tell distributions apart, [N, F]."""
    tests = torch.cat([torch.sin(z), torch.cos(2 * z), torch.tanh(z), torch.sigmoid(z) * z.roll(1, -1).tanh()], -1)
    return (b.unsqueeze(-1) * tests.unsqueeze(-2)).flatten(1)


def naive_binary(b: Tensor, logits: Tensor, noise: Tensor) -> Tensor:
    """Seen in a published implementation: log p + log(1 + p) in place of log p − log(1 − p)."""
    z = Binary().given(b, logits, noise)
    return z - logits + torch.log(torch.sigmoid(logits)) + torch.log1p(torch.sigmoid(logits))


def naive_categories(b: Tensor, logits: Tensor, noise: Tensor) -> Tensor:
    """Fresh noise for all but the chosen category, cut off at the largest instead of drawn below it."""
    largest = (b * noise).sum(-1, keepdim=True)
    return torch.where(b > 0, largest, torch.minimum(logits + noise, largest))


@pytest.mark.slow
@each_family
def test_perturbed_logits_given_the_draw(kind: Family, logits: Tensor) -> None:
    """(b, z) has one distribution whether z is drawn first or given b."""
    many = rows(logits)
    z = many + kind.noise(many)
    b = kind.hard(z)
    naive = naive_binary if isinstance(kind, Binary) else naive_categories
    again, twin = (features(b, made(b, many, kind.noise(many))) for made in (kind.given, naive))
    nothing = torch.zeros_like(again[0])
    assert_unbiased(features(b, z) - again, nothing)
    assert_rejected(features(b, z) - twin, nothing)


@each_family
def test_the_marginal_is_unchanged(kind: Family, logits: Tensor) -> None:
    """With b drawn apart, z given b has the distribution function of the noise, shifted."""
    many = rows(logits)
    b = kind.draw(kind.soft(many))
    z = kind.given(b, many, kind.noise(many))
    for level in (-1.0, 0.5, 2.0):
        shift = level - logits
        exact = torch.sigmoid(shift) if isinstance(kind, Binary) else torch.exp(-torch.exp(-shift))
        check((z <= level).to(z.dtype), exact, twin=(z <= level + 0.05).to(z.dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("scale", [1.0, 30.0, 300.0])
@pytest.mark.parametrize("kind", [Binary(), Categories()], ids=["binary", "categories"])
def test_given_a_draw_stays_that_draw(kind: Family, scale: float, dtype: torch.dtype) -> None:
    """At extreme logits too, and for draws that are next to impossible."""
    logits = (scale * torch.randn(1000, 4)).to(dtype)
    logits = logits if isinstance(kind, Binary) else logits.log_softmax(-1)
    b = kind.hard(torch.randn(1000, 4, dtype=dtype))
    noise = kind.noise(logits.expand(3, 1000, 4)).requires_grad_()
    z = kind.given(b, logits, noise)
    assert z.isfinite().all()
    assert z.dtype == dtype
    torch.testing.assert_close(kind.hard(z), b.expand(3, 1000, 4))
    (gradient,) = torch.autograd.grad(z.sum(), noise)
    assert gradient.isfinite().all()


def test_a_category_that_is_ruled_out() -> None:
    logits = torch.log_softmax(torch.tensor([0.3, -torch.inf, 0.1]), -1).expand(1000, 3)
    kind = Categories()
    noise = kind.noise(logits)
    b = kind.hard(logits + noise)
    assert b[:, 1].sum() == 0
    assert kind.draw(kind.soft(logits))[:, 1].sum() == 0
    assert (kind.given(b, logits, noise)[:, 1] == -torch.inf).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_noise_is_finite(dtype: torch.dtype) -> None:
    """Single precision meets zero among uniform numbers every 2²⁴ draws."""
    torch.manual_seed(0)
    for kind in (Binary(), Categories()):
        noise = kind.noise(torch.empty(20_000_000, dtype=dtype))
        assert noise.dtype == dtype
        assert noise.isfinite().all()


@each_family
def test_the_slope_is_the_jacobian_of_soft(kind: Family, logits: Tensor) -> None:
    direction = torch.tensor([0.7, -0.2, 0.4])
    jacobian = torch.autograd.functional.jacobian(kind.soft, logits)
    torch.testing.assert_close(kind.slope(kind.soft(logits), direction), jacobian @ direction)


@each_family
def test_leading_dimensions_are_no_matter(kind: Family, logits: Tensor) -> None:
    many = logits + torch.randn(2, 5, 3)
    many = many if isinstance(kind, Binary) else many.log_softmax(-1)
    noise = kind.noise(many)
    assert noise.shape == many.shape
    b = kind.hard(many + noise)
    together = (b, kind.soft(many), kind.slope(many.sigmoid(), many), kind.given(b, many, noise))
    for i in range(2):
        apart = (
            kind.hard(many[i] + noise[i]),
            kind.soft(many[i]),
            kind.slope(many[i].sigmoid(), many[i]),
            kind.given(b[i], many[i], noise[i]),
        )
        for one, other in zip(together, apart):
            torch.testing.assert_close(one[i], other)


@each_family
def test_noise_does_not_depend_on_strides(kind: Family, logits: Tensor) -> None:
    turned = torch.zeros(3, 4).T
    torch.manual_seed(1)
    first = kind.noise(turned)
    torch.manual_seed(1)
    torch.testing.assert_close(first, kind.noise(torch.zeros(4, 3)))


def test_which_family() -> None:
    logits = torch.zeros(2, 3)
    known = {
        Bernoulli(logits=logits): Binary(),
        Independent(Independent(Bernoulli(probs=logits.sigmoid()), 1), 1): Binary(),
        OneHotCategorical(logits=logits): Categories(),
        OneHotCategoricalStraightThrough(logits=logits): Categories(),
        Independent(Categorical(logits=logits), 1): Categories(indexed=True),
        Normal(logits, 1.0): None,
        Independent(Binomial(3, logits=logits), 1): None,
        RelaxedBernoulli(torch.tensor(1.0), logits=logits): None,
    }
    for dist, kind in known.items():
        assert family(take_apart(dist)[0]) == kind, dist
