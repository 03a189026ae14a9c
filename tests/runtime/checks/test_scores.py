"""Scores that would be wrong are found in the first call, with the site, and the advice works."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import (
    Bernoulli,
    Beta,
    Binomial,
    Categorical,
    Cauchy,
    Dirichlet,
    Exponential,
    FisherSnedecor,
    Gamma,
    Geometric,
    Gumbel,
    HalfCauchy,
    HalfNormal,
    Independent,
    InverseGamma,
    Kumaraswamy,
    Laplace,
    LogNormal,
    MixtureSameFamily,
    Multinomial,
    NegativeBinomial,
    Normal,
    OneHotCategorical,
    Pareto,
    Poisson,
    RelaxedOneHotCategorical,
    StudentT,
    TransformedDistribution,
    VonMises,
    Weibull,
)
from torch.distributions.transforms import AffineTransform, TanhTransform

import propc
from propc import EstimatorError, NonFiniteError

Law = Callable[..., Any]
ROWS = 64


@pytest.fixture(autouse=True)
def single() -> Iterator[None]:
    """Rounding is that of float32, as users have it."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    yield
    torch.set_default_dtype(before)


def gradient(law: Law, estimator: Any, *at: float, rows: int = ROWS, dtype: Any = torch.float32, **options: Any) -> Any:
    def program(*phi: Tensor) -> Tensor:
        x = propc.sample(law(*phi), "x")
        return x.flatten(1).sum(1) if x.dim() > 1 else 1.0 * x

    torch.manual_seed(0)
    phi = [torch.full((rows,), value, requires_grad=True, dtype=dtype) for value in at]
    costs = propc.compile(program, estimator=estimator, **options)(*phi)
    return torch.autograd.grad(costs.sum(), phi)


class Whole(Normal):
    """Its log-probability is one number."""

    def log_prob(self, value: Tensor) -> Tensor:
        return super().log_prob(value).sum()


class Square(Normal):
    """Its log-probability has a row for each row."""

    def log_prob(self, value: Tensor) -> Tensor:
        return super().log_prob(value)[:, None] + 0 * value


class Column(Normal):
    def log_prob(self, value: Tensor) -> Tensor:
        return super().log_prob(value).unsqueeze(-1)


def column_of_temperatures(a: Tensor) -> RelaxedOneHotCategorical:
    return RelaxedOneHotCategorical(torch.full((len(a), 1), 0.7), logits=torch.stack([a, -a], -1))


SHAPES: dict[str, Law] = {
    "a scalar": lambda a: Whole(a, 1.0),
    "a square": lambda a: Square(a, 1.0),
    "a column": lambda a: Column(a, 1.0),
    "a column of temperatures": column_of_temperatures,
    "inside Independent": lambda a: Independent(Whole(a[:, None].expand(-1, 2), 1.0), 1),
    "under a transform": lambda a: TransformedDistribution(Whole(a, 1.0), [TanhTransform()]),
}


@pytest.mark.parametrize("estimator", ["lr", "rloo", "tp"])
@pytest.mark.parametrize("law", SHAPES)
def test_the_shape_of_log_prob(law: str, estimator: str) -> None:
    with pytest.raises(EstimatorError, match=r"at site 'x' .*log_prob of .* gives the shape \[.*\] in place of \["):
        gradient(SHAPES[law], estimator, 0.3)


def test_a_single_temperature_is_right() -> None:
    def law(a: Tensor) -> RelaxedOneHotCategorical:
        return RelaxedOneHotCategorical(torch.tensor(0.7), logits=torch.stack([a, -a], -1))

    assert gradient(law, "lr", 0.3)[0].isfinite().all()


ROUNDED: dict[str, tuple[Law, tuple[float, ...], bool]] = {  # whether 'rp' works
    "beta": (lambda a, b: Beta(a, b), (0.05, 0.1), True),
    "gamma": (lambda a: Gamma(a, 1.0), (0.02,), True),
    "inverse gamma": (lambda a: InverseGamma(a, 1.0), (0.02,), False),
    "dirichlet": (lambda a: Dirichlet(torch.stack([a, a, a], -1)), (0.02,), True),
    "independent": (lambda a: Independent(Gamma(a[:, None].expand(-1, 3), 1.0), 1), (0.02,), True),
    "a far normal": (lambda m: Normal(m, torch.full_like(m, 1e-3)), (1e5,), True),
    "a far laplace": (lambda m: Laplace(m, torch.full_like(m, 1e-3)), (1e5,), True),
}


@pytest.mark.parametrize("estimator", ["lr", "tp"])
@pytest.mark.parametrize("law", ROUNDED)
def test_rounded_draws(law: str, estimator: str) -> None:
    make, at, path = ROUNDED[law]
    with pytest.raises(EstimatorError, match=r"at site 'x' .*the score of .*rounded") as error:
        gradient(make, estimator, *at)
    assert ("'rp' here" in str(error.value)) is path
    if path:
        assert all(grad.isfinite().all() for grad in gradient(make, "rp", *at))
    if "float64" in str(error.value):
        gradient(make, estimator, *at, dtype=torch.float64)
    gradient(make, estimator, *at, validate=False)


class Clipped(Normal):
    """Draws are clipped, and its log-probability knows nothing of it."""

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        return super().rsample(torch.Size(sample_shape)).clamp(-0.5, 0.5)


class Tobit(Normal):
    """Draws are clipped, and it knows: probabilities at the ends, a density between."""

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        return super().rsample(torch.Size(sample_shape)).clamp(-0.5, 0.5)

    def log_prob(self, value: Tensor) -> Tensor:
        inside = super().log_prob(value)
        low, high = self.cdf(torch.tensor(-0.5)).log(), (1 - self.cdf(torch.tensor(0.5))).log()
        return torch.where(value <= -0.5, low, torch.where(value >= 0.5, high, inside))


def test_a_log_prob_that_is_not_of_what_is_drawn() -> None:
    with pytest.raises(EstimatorError, match=r"at site 'x' .*standard errors from zero.*not that of what it draws"):
        gradient(lambda m: Clipped(m, 1.0), "lr", 1.0)
    gradient(lambda m: Tobit(m, 1.0), "lr", 1.0)


SOUND: dict[str, tuple[Law, tuple[float, ...]]] = {
    "beta": (lambda a, b: Beta(a, b), (0.5, 0.5)),
    "gamma": (lambda a, b: Gamma(a, b), (0.2, 3.0)),
    "student": (lambda a: StudentT(1.5, a, 2.0), (0.3,)),
    "cauchy": (lambda a, b: Cauchy(a, b), (0.3, 2.0)),
    "lognormal": (lambda a, b: LogNormal(a, b), (0.3, 3.0)),
    "pareto": (lambda b: Pareto(1.0, b), (0.7,)),
    "weibull": (lambda a, b: Weibull(a, b), (0.7, 0.6)),
    "kumaraswamy": (lambda a, b: Kumaraswamy(a, b), (0.7, 0.6)),
    "gumbel": (lambda a, b: Gumbel(a, b), (0.7, 0.6)),
    "von mises": (lambda a, b: VonMises(a, b), (0.7, 0.6)),
    "half-normal": (lambda b: HalfNormal(b), (0.7,)),
    "half-cauchy": (lambda b: HalfCauchy(b), (0.7,)),
    "exponential": (lambda b: Exponential(b), (1e-6,)),
    "fisher": (lambda a, b: FisherSnedecor(a, b), (3.0, 5.0)),
    "tanh": (lambda a, b: TransformedDistribution(Normal(a, b), [TanhTransform()]), (5.0, 5.0)),
    "a mixture by probs": (
        lambda a: MixtureSameFamily(
            Categorical(probs=torch.stack([a, 1 - a], -1)), Normal(torch.tensor([3.0, 0.0]).expand(len(a), 2), 1.0)
        ),
        (0.2,),
    ),
    "a rare component": (
        lambda a: MixtureSameFamily(
            Categorical(logits=torch.stack([a, 0 * a], -1)), Normal(torch.tensor([3.0, 0.0]).expand(len(a), 2), 1.0)
        ),
        (-20.0,),
    ),
}


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("law", SOUND)
def test_no_false_alarm(law: str, seed: int) -> None:
    make, at = SOUND[law]
    for rows in (2, 500):
        torch.manual_seed(seed)
        gradient(make, "lr", *at, rows=rows)


EDGES: dict[str, tuple[Law, float]] = {
    "bernoulli 0": (lambda p: Bernoulli(p), 0.0),
    "bernoulli 1": (lambda p: Bernoulli(p), 1.0),
    "independent": (lambda p: Independent(Bernoulli(p[:, None].expand(-1, 3)), 1), 0.0),
    "categorical": (lambda p: Categorical(torch.stack([p, 1 - p], -1)), 0.0),
    "one-hot": (lambda p: OneHotCategorical(torch.stack([p, 1 - p], -1)), 1.0),
    "multinomial": (lambda p: Multinomial(2, torch.stack([p, 1 - p], -1)), 0.0),
    "binomial": (lambda p: Binomial(3, p), 0.0),
    "geometric": (lambda p: Geometric(p), 1.0),
    "negative binomial": (lambda p: NegativeBinomial(2.0, p), 0.0),
    "poisson": (lambda p: Poisson(p), 0.0),
}


@pytest.mark.parametrize("estimator", ["lr", "rloo"])
@pytest.mark.parametrize("law", EDGES)
def test_edges_of_parameters(law: str, estimator: str) -> None:
    make, at = EDGES[law]
    with pytest.raises(EstimatorError, match=r"at site 'x' .*parameter '.*' of .* is [01] in") as error:
        gradient(make, estimator, at)
    if "'mvd'" in str(error.value):
        torch.testing.assert_close(gradient(make, "mvd", at)[0], torch.ones(ROWS))
    if "'local'" in str(error.value) and law != "categorical" and law != "one-hot":
        for advised in ("local", "enumerate"):
            torch.testing.assert_close(
                gradient(make, advised, at)[0], torch.full((ROWS,), 3.0 if "ind" in law else 1.0)
            )
    if "clamping" in str(error.value):
        assert gradient(lambda p: make(p.clamp(1e-6, 1 - 1e-6)), estimator, at)[0].isfinite().all()


@pytest.mark.parametrize("estimator", ["arm", "disarm"])
def test_edges_of_parameters_of_pairs(estimator: str) -> None:
    with pytest.raises(EstimatorError, match=r"at site 'x' .*parameter 'probs' of .* is 0 in"):
        gradient(lambda p: Bernoulli(p), estimator, 0.0)


def test_what_saturates_is_no_edge() -> None:
    """Behind a sigmoid or a softmax a probability of 0 or 1 has no derivative."""
    for law in (
        lambda a: Bernoulli(logits=a),
        lambda a: Bernoulli(a.sigmoid()),
        lambda a: OneHotCategorical(torch.softmax(torch.stack([a, -a], -1), -1)),
    ):
        (grad,) = gradient(law, "lr", 200.0, validate=True)
        torch.testing.assert_close(grad, torch.zeros(ROWS))


KINKED: dict[str, Law] = {
    "laplace": lambda m: Laplace(m, 1.0),
    "independent": lambda m: Independent(Laplace(m[:, None].expand(-1, 2), 1.0), 1),
    "under tanh": lambda m: TransformedDistribution(Laplace(m, 1.0), [TanhTransform()]),
    "moved": lambda m: TransformedDistribution(Laplace(torch.zeros_like(m), 1.0), [AffineTransform(m, 1.0)]),
    "a mixture": lambda m: MixtureSameFamily(
        Categorical(torch.ones(len(m), 2)), Laplace(torch.stack([m, m + 1], -1), 1.0)
    ),
}


def second(law: Law, estimator: str, at: float, rows: int) -> Tensor:
    """The second derivative of E x², x summed over its elements."""
    theta = torch.tensor(at, requires_grad=True)

    def program(theta: Tensor) -> Tensor:
        return propc.sample(law(theta.expand(rows)), "x").reshape(rows, -1).sum(-1).square()

    torch.manual_seed(0)
    costs = propc.compile(program, estimator=estimator)(theta)
    (first,) = torch.autograd.grad(costs.mean(), theta, create_graph=True)
    return torch.autograd.grad(first, theta)[0]


@pytest.mark.parametrize("estimator", ["lr", "rloo"])
@pytest.mark.parametrize("law", KINKED)
def test_kinks(law: str, estimator: str) -> None:
    gradient(KINKED[law], estimator, 0.3)
    for rows in (2, 500):
        with pytest.raises(EstimatorError, match=r"at site 'x' .*log-probability of .* has a kink"):
            second(KINKED[law], estimator, 0.3, rows)


@pytest.mark.parametrize(
    ("law", "exact"),
    [
        (lambda s: Laplace(torch.zeros_like(s), s), 4.0),
        (lambda m: Normal(m, 1.0), 2.0),
        (lambda m: Gumbel(m, 1.0), 2.0),
        (lambda b: Exponential(b), 12 / 0.8**4),
    ],
    ids=["scale of laplace", "normal", "gumbel", "exponential"],
)
def test_smooth_laws_have_second_derivatives(law: Law, exact: float) -> None:
    """Of E x², in float32, from 400,000 draws."""
    assert abs(second(law, "lr", 0.8, 400_000) - exact) < 0.1 * exact


class Root(Normal):
    """log p has the root of what is zero."""

    def log_prob(self, value: Tensor) -> Tensor:
        return super().log_prob(value) + 0 * (self.loc - self.loc.detach()).abs().sqrt()


class Bad(Normal):
    def rsample(self, sample_shape: Any = ()) -> Tensor:
        return super().rsample(torch.Size(sample_shape)) + (self.loc - self.loc.detach()).abs().sqrt()


def test_gradients_that_are_not_finite() -> None:
    with pytest.raises(NonFiniteError, match=r"at site 'x' .*gradients that 'rp' sends to parameter 'loc'"):
        gradient(lambda m: Bad(m, 1.0), "rp", 0.3)
    with pytest.raises(propc.PropcError, match=r"at site 'x' .*the score of Root.* in 'loc' is not finite"):
        gradient(lambda m: Root(m, 1.0), "lr", 0.3)
    assert not gradient(lambda m: Bad(m, 1.0), "rp", 0.3, validate=False)[0].isfinite().any()


def test_a_loss_that_is_scaled_to_infinity_is_no_fault_of_the_site() -> None:
    mean = torch.zeros(4, requires_grad=True)
    costs = propc.compile(lambda m: propc.sample(Normal(m, 1.0), "x").square(), estimator="lr")(mean)
    (float("inf") * costs.sum()).backward()
    assert mean.grad is not None


def test_looks_leave_the_random_numbers() -> None:
    """The first call draws what later ones draw."""

    def program(a: Tensor) -> Tensor:
        return propc.sample(Gamma(a, 1.0), "x")

    compiled = propc.compile(program, estimator="lr")
    a = torch.ones(5, requires_grad=True)
    found = []
    for _ in range(2):
        torch.manual_seed(3)
        found.append((compiled(a).detach(), torch.rand(3)))
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)
