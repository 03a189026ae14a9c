"""The score is that of the draw that was made: of its pre-image, and of probabilities as they were given."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from stats import assert_rejected, assert_unbiased
from torch import Tensor
from torch.distributions import (
    Bernoulli,
    Binomial,
    Categorical,
    Geometric,
    Independent,
    Kumaraswamy,
    LogNormal,
    MixtureSameFamily,
    NegativeBinomial,
    Normal,
    RelaxedBernoulli,
    RelaxedOneHotCategorical,
    TransformedDistribution,
    Weibull,
)
from torch.distributions.transforms import (
    AffineTransform,
    ComposeTransform,
    ExpTransform,
    IndependentTransform,
    SigmoidTransform,
    TanhTransform,
)

import propc

pytestmark = pytest.mark.statistical
ROWS = 100_000


def gradient_draws(program: Callable[..., Tensor], theta: Tensor) -> Tensor:
    """Gradients at every row [rows, *theta.shape], the rows being independent."""
    torch.manual_seed(1)
    rows = theta.expand(ROWS, *theta.shape).clone().requires_grad_()
    (grad,) = torch.autograd.grad(program(rows).sum(), rows)
    return grad


Law = Callable[[Tensor], Any]


def of_noise(value: Callable[[Tensor, Tensor], Tensor], theta: Tensor) -> Tensor:
    """Exact: d/dθ ∫ value(ε, θ) φ(ε) dε for standard normal ε, by quadrature."""
    theta = theta.double().requires_grad_()
    noise = torch.linspace(-9, 9, 40_001, dtype=torch.float64)
    density = torch.exp(-noise.square() / 2) / (2 * torch.pi) ** 0.5 * (noise[1] - noise[0])
    (grad,) = torch.autograd.grad((value(noise, theta) * density).sum(), theta)
    return grad.float()


def normal(theta: Tensor) -> Normal:
    return Normal(theta[..., 0], theta[..., 1])


def tanh(*transforms: Any) -> Law:
    return lambda p: TransformedDistribution(normal(p), [*transforms])


SATURATED: dict[str, tuple[Law, tuple[float, ...], Callable[[Tensor, Tensor], Tensor]]] = {
    "tanh": (tanh(TanhTransform()), (3.0, 3.0), lambda e, p: (p[0] + p[1] * e).tanh()),
    "cached tanh": (tanh(TanhTransform(cache_size=1)), (3.0, 3.0), lambda e, p: (p[0] + p[1] * e).tanh()),
    "sigmoid": (tanh(SigmoidTransform()), (9.0, 9.0), lambda e, p: 2 * (p[0] + p[1] * e).sigmoid() - 1),
    "composed": (
        tanh(ComposeTransform([AffineTransform(1.0, 2.0), TanhTransform(cache_size=1)])),
        (1.0, 2.0),
        lambda e, p: (1 + 2 * (p[0] + p[1] * e)).tanh(),
    ),
    "independent": (
        lambda p: Independent(
            TransformedDistribution(Normal(p[..., :1], p[..., 1:]), [IndependentTransform(TanhTransform(), 1)]), 0
        ),
        (3.0, 3.0),
        lambda e, p: (p[0] + p[1] * e).tanh(),
    ),
    "its own scale": (  # the transform holds what is learned, and its pre-image is cached
        lambda p: TransformedDistribution(
            Normal(torch.zeros_like(p[..., 0]), 1.0), [AffineTransform(p[..., 0], p[..., 1], cache_size=1)]
        ),
        (0.3, 0.8),
        lambda e, p: p[0] + p[1] * e,
    ),
    "scaled before": (
        lambda p: TransformedDistribution(
            Normal(torch.zeros_like(p[..., 0]), 1.0), [AffineTransform(p[..., 0], p[..., 1]), TanhTransform()]
        ),
        (3.0, 3.0),
        lambda e, p: (p[0] + p[1] * e).tanh(),
    ),
}


@pytest.mark.parametrize("estimator", ["lr", "rloo", "tp"])
@pytest.mark.parametrize("law", SATURATED)
def test_pre_images(law: str, estimator: str) -> None:
    """E (x + x²) in float32, though half of the draws are rounded to an end."""
    make, at, value = SATURATED[law]

    def program(theta: Tensor) -> Tensor:
        x = propc.sample(make(theta), "x")
        x = 2 * x - 1 if law == "sigmoid" else x
        x = x.squeeze(-1) if x.dim() > theta.dim() - 1 else x
        return x + x.square()

    exact = of_noise(lambda e, p: value(e, p) + value(e, p).square(), torch.tensor(at))
    draws = gradient_draws(propc.compile(program, estimator=estimator), torch.tensor(at))
    assert_unbiased(draws, exact)
    assert_rejected(draws, 1.15 * exact)


@pytest.mark.parametrize("estimator", ["lr", "tp"])
def test_relaxed_draws(estimator: str) -> None:
    """RelaxedBernoulli(0.05): a tenth of its draws are 1 in float32. y = σ((1.5 + logistic noise) / 0.05)."""

    def program(theta: Tensor) -> Tensor:
        return propc.sample(RelaxedBernoulli(torch.tensor(0.05), logits=theta[..., 0]), "y").square()

    u = (torch.arange(2_000_000, dtype=torch.float64) + 0.5) / 2_000_000
    theta = torch.tensor([1.5], dtype=torch.float64, requires_grad=True)
    y = ((theta + u.logit()) / 0.05).sigmoid()
    (exact,) = torch.autograd.grad(y.square().mean(), theta)
    draws = gradient_draws(propc.compile(program, estimator=estimator), torch.tensor([1.5]))
    assert_unbiased(draws, exact.float())
    assert_rejected(draws, 0.9 * exact.float())


PATHWISE: dict[str, tuple[Law, tuple[float, ...]]] = {
    "lognormal": (lambda p: LogNormal(p[..., 0], p[..., 1]), (0.2, 0.5)),
    "weibull": (lambda p: Weibull(p[..., 0], p[..., 1]), (0.7, 1.3)),
    "kumaraswamy": (lambda p: Kumaraswamy(p[..., 0], p[..., 1]), (0.7, 1.3)),
    "relaxed one-hot": (lambda p: RelaxedOneHotCategorical(torch.tensor(0.2), logits=p), (0.2, 0.9)),
    "exp of affine": (
        lambda p: TransformedDistribution(normal(p), [ExpTransform(), AffineTransform(0.0, 2.0)]),
        (0.2, 0.5),
    ),
}


@pytest.mark.parametrize("law", PATHWISE)
def test_the_score_is_that_of_the_path(law: str) -> None:
    """The likelihood ratio has the mean of the pathwise gradient."""
    make, at = PATHWISE[law]

    def program(theta: Tensor) -> Tensor:
        x = propc.sample(make(theta), "x")
        x = x[..., 0] if law == "relaxed one-hot" else x
        return x.clamp(max=5.0) + (2 * x).sin()

    score, path = (gradient_draws(propc.compile(program, estimator=e), torch.tensor(at)) for e in ("lr", "rp"))
    assert_unbiased(score - path, torch.zeros(len(at)))
    assert_rejected(score - 1.2 * path, torch.zeros(len(at)))


def test_the_density_of_a_draw_in_the_program_knows_its_pre_image() -> None:
    """An entropy bonus under tanh at mean 9: in plain PyTorch the cache keeps it finite, and its slope is 2."""

    def entropy(mean: Tensor) -> Tensor:
        policy = TransformedDistribution(Normal(mean[..., 0], 1.0), [TanhTransform(cache_size=1)])
        return policy.log_prob(propc.sample(policy, "a"))

    torch.manual_seed(0)
    mean = torch.full((1000, 1), 9.0, requires_grad=True)
    costs = propc.compile(entropy)(mean)
    torch.manual_seed(0)
    policy = TransformedDistribution(Normal(mean[:, 0], 1.0), [TanhTransform(cache_size=1)])
    plain = policy.log_prob(policy.rsample())
    torch.testing.assert_close(costs, plain)
    (ours,), (theirs,) = (torch.autograd.grad(each.sum(), mean) for each in (costs, plain))
    torch.testing.assert_close(ours, theirs)
    for estimator in ("lr", "tp"):
        draws = gradient_draws(propc.compile(entropy, estimator=estimator), torch.tensor([9.0]))
        assert_unbiased(draws, torch.tensor([2.0]))


BY_PROBS: dict[str, tuple[Law, float, float]] = {  # law, p, d/dp of its mean
    "bernoulli": (lambda p: Bernoulli(p), 0.02, 1.0),
    "binomial": (lambda p: Binomial(3, p), 0.02, 3.0),
    "geometric": (lambda p: Geometric(p), 0.2, -25.0),
    "negative binomial": (lambda p: NegativeBinomial(2.0, p), 0.2, 3.125),
    "categorical": (lambda p: Categorical(torch.stack([p, 1 - p], -1)), 0.2, -1.0),
    "a mixture's": (
        lambda p: MixtureSameFamily(
            Categorical(torch.stack([p, 1 - p], -1)), Normal(torch.tensor([1.0, -1.0]).expand(*p.shape, 2), 1.0)
        ),
        1e-10,
        2.0,
    ),
}


@pytest.mark.parametrize("law", BY_PROBS)
def test_by_probs(law: str) -> None:
    make, p, exact = BY_PROBS[law]

    def program(theta: Tensor) -> Tensor:
        return 1.0 * propc.sample(make(theta[..., 0]), "z")

    draws = gradient_draws(propc.compile(program, estimator="lr"), torch.tensor([p]))
    assert_unbiased(draws, torch.tensor([exact]))
    assert_rejected(draws, torch.tensor([1.2 * exact]))
