"""Measure-valued derivatives that a user registers, against exact gradients; and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import oracles
import pytest
import torch
from programs import OBJECTIVES, vector
from stats import assert_less_variance, check, gradient_draws
from torch import Tensor
from torch.distributions import Distribution, Geometric, Independent, Laplace, MultivariateNormal

import propc
from propc.distributions import measures

pytestmark = pytest.mark.statistical


def laplace_sides(dist: Laplace, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """[law of μ + bE − law of μ − bE] / 2b."""
    reach = (x - dist.loc).abs()
    return 1 / (2 * dist.scale), dist.loc + reach, dist.loc - reach


def laplace_mirror(dist: Laplace, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The same: the draw is one of the two."""
    return torch.sign(x - dist.loc) / (2 * dist.scale), x, 2 * dist.loc - x


def laplace_scale(dist: Laplace, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return 1 / dist.scale, x + torch.sign(x - dist.loc) * dist.scale * torch.empty_like(x).exponential_(), x


def geometric(dist: Geometric, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """[p − law of 1 + k + k'] / p for two draws k, k'."""
    return 1 / dist.probs, x, x + 1 + dist.sample()


@pytest.fixture(autouse=True)
def table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measures, "_TABLE", dict(measures._TABLE))


def _laplace(p: Tensor) -> Distribution:
    return Laplace(p[..., 0], p[..., 1])


def _of_geometric(dist: Any, f: Callable[[Tensor], Tensor]) -> Tensor:
    k = torch.arange(400, dtype=torch.float64)
    return (dist.log_prob(k).exp() * f(k)).sum()


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("loc", [laplace_sides, laplace_mirror])
def test_laplace(loc: Any, objective: str) -> None:
    propc.register_measure(Laplace, "loc", reuses="positive" if loc is laplace_mirror else None)(loc)
    propc.register_measure(Laplace, "scale", reuses="negative")(laplace_scale)
    f = OBJECTIVES[objective]

    def program(theta: Tensor, batch: int) -> Tensor:
        return f(propc.sample(_laplace(theta.expand(batch, 2)), "x"))

    theta = vector(0.4, 0.3)
    x = torch.linspace(-12, 12, 2_000_001, dtype=torch.float64)
    exact = oracles.gradient(lambda p: torch.trapezoid(_laplace(p).log_prob(x).exp() * f(x), x), theta)
    draws = gradient_draws(propc.compile(program, estimator="mvd"), theta, rows=200_000)
    check(draws, exact, twin=1.15 * draws + 0.05)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_geometric(objective: str) -> None:
    propc.register_measure(Geometric, "probs", reuses="positive")(geometric)
    f = OBJECTIVES[objective]

    def program(theta: Tensor, batch: int) -> Tensor:
        return f(propc.sample(Geometric(theta.expand(batch)), "x"))

    theta = vector(0.6)[0]
    exact = oracles.gradient(lambda p: _of_geometric(Geometric(p), f), theta)
    draws = gradient_draws(propc.compile(program, estimator="mvd"), theta, rows=200_000)
    check(draws, exact.reshape(1), twin=1.15)
    assert_less_variance(draws, gradient_draws(propc.compile(program, estimator="lr"), theta, rows=200_000))


def test_of_several_elements() -> None:
    propc.register_measure(Laplace, "loc", reuses="positive")(laplace_mirror)

    def program(theta: Tensor, batch: int) -> Tensor:
        x = propc.sample(Independent(Laplace(theta.expand(batch, 2), 0.5), 1), "x")
        return x.prod(-1) + x.square().sum(-1)

    theta = vector(0.4, -0.7)
    exact = vector(-0.7 + 0.8, 0.4 - 1.4)
    check(gradient_draws(propc.compile(program, estimator="mvd"), theta, rows=100_000), exact, twin=1.05)


def test_what_is_refused() -> None:
    register = propc.register_measure
    with pytest.raises(propc.PropcTypeError, match="a family is a class of distributions"):
        register("laplace", "loc")  # type: ignore[arg-type]
    with pytest.raises(propc.PropcTypeError, match="must be a name"):
        register(Laplace, laplace_scale)  # type: ignore[arg-type]
    with pytest.raises(propc.PropcValueError, match=r"reuses='negativ'.*Did you mean 'negative'"):
        register(Laplace, "loc", reuses="negativ")
    with pytest.raises(propc.PropcTypeError, match="is to be a function"):
        register(Laplace, "loc")(3)  # type: ignore[type-var]
    register(Laplace, "loc")(laplace_sides)
    register(Laplace, "loc")(laplace_sides)  # in a notebook
    with pytest.raises(propc.PropcValueError, match="Laplace in 'loc' is known already"):
        register(Laplace, "loc")(laplace_mirror)


def run(dist: Callable[[Tensor], Distribution]) -> None:
    theta = torch.tensor(0.5, requires_grad=True)
    x = propc.compile(lambda theta: propc.sample(dist(theta), "x").reshape(6, -1).sum(-1), estimator="mvd")
    x(theta).sum().backward()


def test_where_it_cannot_work() -> None:
    with pytest.raises(propc.EstimatorError, match=r"no measure-valued derivative of Laplace.*propc.register_measure"):
        run(lambda theta: Laplace(theta.expand(6), 1.0))

    propc.register_measure(Laplace, "loc")(lambda dist, x: x)  # type: ignore[arg-type, return-value]
    with pytest.raises(propc.PropcTypeError, match=r"of Laplace gives .*a positive and a negative draw"):
        run(lambda theta: Laplace(theta.expand(6), 1.0))

    propc.register_measure(MultivariateNormal, "loc")(lambda dist, x: (torch.ones(()), x, x))
    with pytest.raises(propc.EstimatorError, match="changes one number at a time"):
        run(lambda theta: MultivariateNormal(theta.expand(6, 2), torch.eye(2)))
