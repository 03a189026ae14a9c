"""Discrete families that a user registers: under every estimator against exact gradients, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from stats import check, gradient_draws
from torch import Tensor
from torch.distributions import Bernoulli, Categorical, Distribution, Independent, constraints

import propc
from propc.distributions import families

pytestmark = pytest.mark.statistical


class Finite(Distribution):
    """One of a few values, the same for all elements, by their logits."""

    arg_constraints = {"logits": constraints.real_vector}  # noqa: RUF012
    has_enumerate_support = True

    def __init__(self, logits: Tensor, values: tuple[float, ...]) -> None:
        self.logits, self.values = logits, values
        super().__init__(logits.shape[:-1], validate_args=False)

    @property
    def table(self) -> Tensor:
        return torch.tensor(self.values, dtype=self.logits.dtype)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        return self.table[Categorical(logits=self.logits).sample(torch.Size(sample_shape))]

    def log_prob(self, value: Tensor) -> Tensor:
        return Categorical(logits=self.logits).log_prob((value.unsqueeze(-1) == self.table).long().argmax(-1))

    def enumerate_support(self, expand: bool = True) -> Tensor:
        values = self.table.reshape(-1, *(1,) * len(self.batch_shape))
        return values.expand(-1, *self.batch_shape) if expand else values


class Capped(Distribution):
    """A Poisson law cut off behind 3; it has no attribute `logits`."""

    arg_constraints = {"rate": constraints.positive}  # noqa: RUF012
    has_enumerate_support = True

    def __init__(self, rate: Tensor) -> None:
        self.rate = rate
        super().__init__(rate.shape, validate_args=False)

    @property
    def scores(self) -> Tensor:
        k = torch.arange(4, dtype=self.rate.dtype)
        return k * self.rate.log().unsqueeze(-1) - torch.lgamma(k + 1)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        return Categorical(logits=self.scores).sample(torch.Size(sample_shape)).to(self.rate.dtype)

    def log_prob(self, value: Tensor) -> Tensor:
        return Categorical(logits=self.scores).log_prob(value)

    def enumerate_support(self, expand: bool = True) -> Tensor:
        values = torch.arange(4, dtype=self.rate.dtype).reshape(-1, *(1,) * len(self.batch_shape))
        return values.expand(-1, *self.batch_shape) if expand else values


def finite(p: Tensor) -> Distribution:
    return Finite(p, (-1.0, 0.5, 2.0))


def capped(p: Tensor) -> Distribution:
    return Capped(p[..., 0].exp())


LAWS = {"finite": (finite, [0.3, -0.5, 0.2]), "capped": (capped, [0.4])}
each_law = pytest.mark.parametrize("law", LAWS)


@pytest.fixture(autouse=True)
def table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(families, "_TABLE", dict(families._TABLE))
    register = propc.register_family
    register(Finite, "categories", logits=lambda d: d.logits, value=lambda d, b: (b * d.table).sum(-1))
    register(Capped, "categories", logits=lambda d: d.scores, value=lambda d, b: (b * torch.arange(4.0)).sum(-1))


def program(law: Callable[[Tensor], Distribution], f: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    """Two rows of two elements each."""

    def run(theta: Tensor, batch: int) -> Tensor:
        p = theta.expand(batch, theta.shape[-1]).unsqueeze(1).expand(batch, 2, theta.shape[-1])
        x = propc.sample(Independent(law(p), 1), "x")
        return f(x[..., 0] + 0.5 * x[..., 1])

    return run


def gradient(law: str, f: Callable[[Tensor], Tensor], estimator: Any, **options: Any) -> Tensor:
    make, values = LAWS[law]
    theta = torch.tensor(values, dtype=torch.float64)
    return gradient_draws(propc.compile(program(make, f), estimator=estimator), theta, **options)


@each_law
@pytest.mark.parametrize("estimator", ["lr", "local", "mvd", "arm", "disarm", propc.estimator("infer", budget=4)])
def test_unbiased(law: str, estimator: Any) -> None:
    exact = gradient(law, torch.cos, "enumerate", rows=2)[0]
    check(gradient(law, torch.cos, estimator, rows=200_000), exact, twin=1.1)


@each_law
def test_relaxed_estimators_have_the_gradient_of_a_linear_cost(law: str) -> None:
    def linear(x: Tensor) -> Tensor:
        return 3 * x

    exact = gradient(law, linear, "enumerate", rows=2)[0]
    torch.testing.assert_close(gradient(law, linear, "st", rows=2)[0], exact)
    check(gradient(law, linear, "reinmax", rows=20_000), exact, twin=1.1)
    for name in ("st_gumbel", "gumbel_softmax", "gumbel_rao"):  # near it where they are sharp
        options = {"temperature": 0.1} | ({"samples": 2} if name == "gumbel_rao" else {})
        found = gradient(law, linear, propc.estimator(name, **options), rows=200_000).mean(0)
        torch.testing.assert_close(found, exact, rtol=0.1, atol=0.05)


@each_law
def test_the_law_is_told_right(law: str) -> None:
    """What estimators draw has the probabilities of the distribution."""
    make, values = LAWS[law]
    dist: Any = make(torch.tensor(values, dtype=torch.float64))
    kind = families._TABLE[type(dist)]
    support = dist.enumerate_support(expand=False)
    torch.testing.assert_close(kind.probs(dist), dist.log_prob(support).exp())
    torch.testing.assert_close(kind.outcomes(dist, len(support)).double(), support.double())


def test_rows_that_mix_are_found_where_all_draw_the_same() -> None:
    def mixing(theta: Tensor) -> Tensor:
        x = propc.sample(finite(theta.expand(8, 3)), "x")
        return x * x.mean()

    sure = torch.tensor([50.0, 0.0, 0.0], requires_grad=True)
    with pytest.raises(propc.GraphError, match="rows"):
        propc.compile(mixing, estimator="lr")(sure)


def test_what_is_refused() -> None:
    register = propc.register_family
    with pytest.raises(propc.PropcTypeError, match="a family is a class of distributions"):
        register("spin", "binary")  # type: ignore[arg-type]
    with pytest.raises(propc.PropcValueError, match=r"kind='binry'.*Did you mean 'binary'"):
        register(Capped, "binry")
    with pytest.raises(propc.PropcTypeError, match="logits= takes a function"):
        register(Capped, "binary", logits=torch.zeros(3))  # type: ignore[arg-type]
    with pytest.raises(propc.PropcValueError, match="the family Capped is known already"):
        register(Capped, "binary")
    with pytest.raises(propc.PropcValueError, match="the family Bernoulli is known already"):
        register(Bernoulli, "binary")


class Rounded(Finite):
    pass


def test_relaxed_estimators_need_a_value_that_lets_gradients_through() -> None:
    def run(theta: Tensor) -> Tensor:
        return propc.sample(Rounded(theta.expand(4, 3), (0.0, 1.0, 2.0)), "x")

    theta = torch.zeros(3, requires_grad=True)
    with pytest.raises(propc.EstimatorError, match=r"needs a Bernoulli.*propc.register_family makes it known"):
        propc.compile(run, estimator="st")(theta)
    propc.register_family(Rounded, "categories", logits=lambda d: d.logits, value=lambda d, b: b.argmax(-1).double())
    with pytest.raises(propc.EstimatorError, match=r"value= of Rounded\(logits\) lets none through"):
        propc.compile(run, estimator="st")(theta)
    propc.compile(run, estimator="disarm")(theta).sum().backward()
    assert theta.grad is not None
