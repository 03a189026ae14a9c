"""What torch checks of the arguments of distributions is checked in a compiled program too, with the user's line."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributions as td
from mistakes import B, normal, refused, run
from torch import Tensor, nn
from torch.distributions import Distribution, constraints
from zoo import leaf

import propc

pytestmark = pytest.mark.usefixtures("nothing_is_lost")


def ones(*shape: int) -> Tensor:
    return torch.ones(shape, dtype=torch.float64)


EYE = torch.eye(2, dtype=torch.float64)
NAN = torch.full((B,), torch.nan, dtype=torch.float64)

# Of every law of torch: how it is made, and a value outside of its support (or, where that is all numbers, NaN).
LAWS: dict[str, tuple[Callable[[], Distribution], Tensor]] = {
    "Bernoulli": (lambda: td.Bernoulli(0.5 * ones(B)), 255 * ones(B)),
    "Beta": (lambda: td.Beta(ones(B), ones(B)), 1.5 * ones(B)),
    "Binomial": (lambda: td.Binomial(3, 0.5 * ones(B)), 4 * ones(B)),
    "Categorical": (lambda: td.Categorical(logits=ones(B, 3)), 0.5 * ones(B)),
    "Cauchy": (lambda: td.Cauchy(ones(B), ones(B)), NAN),
    "Chi2": (lambda: td.Chi2(ones(B)), -ones(B)),
    "ContinuousBernoulli": (lambda: td.ContinuousBernoulli(0.3 * ones(B)), -ones(B)),
    "Dirichlet": (lambda: td.Dirichlet(ones(B, 3)), ones(B, 3)),
    "Exponential": (lambda: td.Exponential(ones(B)), -ones(B)),
    "FisherSnedecor": (lambda: td.FisherSnedecor(ones(B), ones(B)), -ones(B)),
    "Gamma": (lambda: td.Gamma(ones(B), ones(B)), -ones(B)),
    "Geometric": (lambda: td.Geometric(0.5 * ones(B)), -ones(B)),
    "Gumbel": (lambda: td.Gumbel(ones(B), ones(B)), NAN),
    "HalfCauchy": (lambda: td.HalfCauchy(ones(B)), -ones(B)),
    "HalfNormal": (lambda: td.HalfNormal(ones(B)), -ones(B)),
    "Independent": (lambda: td.Independent(td.Poisson(ones(B, 2)), 1), 2.5 * ones(B, 2)),
    "InverseGamma": (lambda: td.InverseGamma(ones(B), ones(B)), -ones(B)),
    "Kumaraswamy": (lambda: td.Kumaraswamy(ones(B), ones(B)), 2 * ones(B)),
    "LKJCholesky": (lambda: td.LKJCholesky(2, ones(B)), 2 * EYE.expand(B, 2, 2)),
    "Laplace": (lambda: td.Laplace(ones(B), ones(B)), NAN),
    "LogNormal": (lambda: td.LogNormal(ones(B), ones(B)), -ones(B)),
    "LogisticNormal": (lambda: td.LogisticNormal(ones(B, 2), ones(B, 2)), ones(B, 3)),
    "LowRankMultivariateNormal": (
        lambda: td.LowRankMultivariateNormal(ones(B, 2), ones(B, 2, 1), ones(B, 2)),
        NAN[:, None].expand(B, 2),
    ),
    "MixtureSameFamily": (
        lambda: td.MixtureSameFamily(td.Categorical(ones(B, 2)), td.Gamma(ones(B, 2), ones(B, 2))),
        -ones(B),
    ),
    "Multinomial": (lambda: td.Multinomial(2, ones(B, 2)), ones(B, 2) * 2),
    "MultivariateNormal": (lambda: td.MultivariateNormal(ones(B, 2), EYE), NAN[:, None].expand(B, 2)),
    "NegativeBinomial": (lambda: td.NegativeBinomial(2 * ones(B), 0.5 * ones(B)), 0.5 * ones(B)),
    "Normal": (lambda: td.Normal(ones(B), ones(B)), NAN),
    "OneHotCategorical": (lambda: td.OneHotCategorical(logits=ones(B, 3)), ones(B, 3)),
    "OneHotCategoricalStraightThrough": (
        lambda: td.OneHotCategoricalStraightThrough(logits=ones(B, 3)),
        ones(B, 3),
    ),
    "Pareto": (lambda: td.Pareto(ones(B), ones(B)), 0.5 * ones(B)),
    "Poisson": (lambda: td.Poisson(ones(B)), 2.5 * ones(B)),
    "RelaxedBernoulli": (lambda: td.RelaxedBernoulli(ones(1), logits=ones(B)), 2 * ones(B)),
    "RelaxedOneHotCategorical": (lambda: td.RelaxedOneHotCategorical(ones(1), logits=ones(B, 3)), ones(B, 3)),
    "StudentT": (lambda: td.StudentT(ones(B)), NAN),
    "TransformedDistribution": (
        lambda: td.TransformedDistribution(td.Normal(ones(B), ones(B)), [td.transforms.SigmoidTransform()]),
        2 * ones(B),
    ),
    "Uniform": (lambda: td.Uniform(0 * ones(B), ones(B)), 2 * ones(B)),
    "VonMises": (lambda: td.VonMises(ones(B), ones(B)), NAN),
    "Weibull": (lambda: td.Weibull(ones(B), ones(B)), -ones(B)),
    "Wishart": (lambda: td.Wishart(3 * ones(B), EYE.expand(B, 2, 2)), -EYE.expand(B, 2, 2)),
}


def test_every_law_of_torch_is_here() -> None:
    kinds = {name: getattr(td, name) for name in td.__all__}
    laws = {name for name, kind in kinds.items() if isinstance(kind, type) and issubclass(kind, Distribution)}
    assert laws - {"Distribution", "ExponentialFamily", "GeneralizedPareto"} == set(LAWS)


@pytest.mark.parametrize("law", LAWS)
def test_a_value_outside_of_the_support(law: str) -> None:
    make, value = LAWS[law]
    with pytest.raises(ValueError, match="within the support"):
        make().log_prob(value)

    def program(theta: Tensor, value: Tensor) -> Tensor:
        return normal(theta) + make().log_prob(value).sum()

    words = "the value given to log_prob() of", "Poisson(" if law == "Independent" else f"{law}(", "must satisfy"
    refused(propc.NonFiniteError, run(program, value, estimator="rp"), *words, program=program, at="log_prob")


# Of laws that are no sites: a parameter that they do not allow.
PARAMETERS: dict[str, tuple[Callable[[Tensor], Distribution], str]] = {
    "Bernoulli": (lambda t: td.Bernoulli(t + 2), "'probs'"),
    "Beta": (lambda t: td.Beta(t, t), "'concentration'"),
    "Categorical": (lambda t: td.Categorical(logits=torch.stack([t, t * torch.nan], 1)), "'logits'"),
    "Dirichlet": (lambda t: td.Dirichlet(torch.stack([t, t], 1)), "'concentration'"),
    "Gamma": (lambda t: td.Gamma(1.0, t), "'rate'"),
    "HalfNormal": (lambda t: td.HalfNormal(t), "'scale'"),
    "Normal": (lambda t: td.Normal(t, -1.0), "'scale'"),
    "MultivariateNormal": (
        lambda t: td.MultivariateNormal(ones(B, 2), t[:, None, None] * EYE),
        "'covariance_matrix'",
    ),
    "Uniform": (lambda t: td.Uniform(0.0 * t, t), "'low'"),
    "ContinuousBernoulli": (lambda t: td.ContinuousBernoulli(probs=t, validate_args=True), "ContinuousBernoulli"),
    "Geometric": (lambda t: td.Geometric(t * 0), "Geometric"),
}


@pytest.mark.parametrize("law", PARAMETERS)
def test_a_parameter_of_a_law_that_is_no_site(law: str) -> None:
    make, parameter = PARAMETERS[law]
    with pytest.raises(ValueError, match="parameter"):
        make(torch.full((B,), -0.6, dtype=torch.float64))

    def program(theta: Tensor) -> Tensor:
        x = normal(theta)
        made = make(theta.expand(B))
        return x * made.mean.reshape(B, -1).sum(1)

    error = refused(propc.NonFiniteError, lambda: propc.compile(program)(leaf(-0.6)), parameter)
    assert "test_arguments.py" in str(error)


def test_the_kl_divergence_of_a_law_with_a_negative_rate() -> None:
    def program(theta: Tensor, rate: Tensor) -> Tensor:
        x = normal(theta)
        prior = td.Gamma(2.0, rate)
        return x + td.kl_divergence(td.Gamma(x.exp(), 1.0), prior)

    compiled = propc.compile(program)
    words = "parameter 'rate' of Gamma(concentration, rate)", f"{B} of {B} do not, such as -1", "softplus"
    refused(propc.NonFiniteError, lambda: compiled(leaf(), -ones(B)), *words, program=program, at="prior =")
    assert torch.isfinite(compiled(leaf(), ones(B))).all()


@pytest.mark.parametrize("method", ["cdf", "icdf"])
def test_other_methods_that_take_a_value(method: str) -> None:
    def program(theta: Tensor, value: Tensor) -> Tensor:
        return normal(theta) * getattr(td.Uniform(0.0 * theta, 1.0), method)(value)

    assert propc.compile(program)(leaf(), 0.5 * ones(B)).shape == (B,)
    if method == "cdf":
        refused(propc.NonFiniteError, run(program, 2 * ones(B), estimator="rp"), "given to cdf() of Uniform(low, high)")


@pytest.mark.parametrize("backend", ["eager", "inductor"])
@pytest.mark.parametrize("validate", [None, True, False])
def test_when_checks_are_made(validate: bool | None, backend: str) -> None:
    """At the first call; at every call where that is asked for."""
    if backend == "inductor":
        pytest.importorskip("torch._inductor")

    def program(theta: Tensor, value: Tensor) -> Tensor:
        return td.Poisson(normal(theta).exp()).log_prob(value)

    good, bad = ones(B), 2.5 * ones(B)
    compiled = propc.compile(program, validate=validate, backend=backend)
    if validate is not False:
        for _ in range(2):  # a first call that has failed is none
            refused(propc.NonFiniteError, lambda: compiled(leaf(), bad), "Poisson", program=program, at="log_prob")
    assert compiled(leaf(), good).shape == (B,)
    if validate is True:
        refused(propc.NonFiniteError, lambda: compiled(leaf(), bad), "Poisson", program=program, at="log_prob")
    else:
        assert compiled(leaf(), bad).shape == (B,)
    assert compiled(leaf(), good).shape == (B,)


def test_what_the_user_lets_through() -> None:
    def explicit(theta: Tensor) -> Tensor:
        return td.Poisson(normal(theta).exp(), validate_args=False).log_prob(torch.tensor(2.5))

    def default(theta: Tensor) -> Tensor:
        return td.Poisson(normal(theta).exp()).log_prob(torch.tensor(2.5))

    assert run(explicit)().shape == (B,)
    refused(propc.NonFiniteError, run(default), "Poisson")
    Distribution.set_default_validate_args(False)  # as `python -O` does
    try:
        assert run(default)().shape == (B,)
        loud = td.Poisson(torch.tensor(1.0), validate_args=True)
        refused(propc.NonFiniteError, run(lambda t: normal(t) * loud.log_prob(torch.tensor(2.5))), "Poisson")
    finally:
        Distribution.set_default_validate_args(True)


def test_a_site_that_lets_all_through() -> None:
    def program(theta: Tensor, checks: bool) -> Tensor:
        law = td.Independent(td.Bernoulli(probs=theta.expand(B, 1) + 0.2, validate_args=checks), 1)
        return propc.sample(law, "z").sum(1) * theta

    compiled = propc.compile(program, estimator="lr")
    refused(propc.NonFiniteError, lambda: compiled(leaf(1.2), True), "site 'z'", "'base_dist.probs'")
    with pytest.raises(RuntimeError, match="p_in >= 0"):  # torch's own
        compiled(leaf(1.2), False)


class Doubled(Distribution):
    """A user's law, which checks by itself too."""

    arg_constraints = {"rate": constraints.positive}  # noqa: RUF012
    support = constraints.positive

    def __init__(self, rate: Tensor, validate_args: bool | None = None) -> None:
        self.rate = rate
        super().__init__(rate.shape, validate_args=validate_args)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
            if (value > 100).any():
                raise ValueError("too large")
        return -value * self.rate


@pytest.mark.parametrize(("rate", "value", "words"), [(-1, 1, "'rate'"), (1, -1, "log_prob()"), (1, 200, "own check")])
def test_a_users_law(rate: float, value: float, words: str) -> None:
    def program(theta: Tensor, rate: Tensor, value: Tensor) -> Tensor:
        return normal(theta) * Doubled(rate).log_prob(value)

    refused(propc.NonFiniteError, run(program, rate * ones(B), value * ones(B), estimator="rp"), "Doubled", words)
    assert run(program, ones(B), ones(B), estimator="rp")().shape == (B,)


def test_shapes_are_checked_when_the_program_is_traced() -> None:
    def program(theta: Tensor) -> Tensor:
        law = td.OneHotCategorical(logits=normal(theta)[:, None].expand(B, 3))
        return law.log_prob(torch.eye(4)[torch.zeros(B, dtype=torch.long)])

    refused(propc.PropcValueError, run(program), "OneHotCategorical", "event_shape", program=program, at="log_prob")


def test_a_matrix_of_a_site_that_its_constructor_factorizes() -> None:
    def program(theta: Tensor, covariance: Tensor) -> Tensor:
        return propc.sample(td.MultivariateNormal(theta.expand(B, 2), covariance), "z").sum(1)

    compiled = propc.compile(program)
    words = "site 'z'", "'covariance_matrix' of MultivariateNormal", "PositiveDefinite", "such as [-1, 0, 0, -1]"
    refused(propc.NonFiniteError, lambda: compiled(leaf(), 0 - EYE), *words, program=program, at="sample")
    compiled(leaf(), EYE)
    refused(propc.NonFiniteError, lambda: compiled(leaf(), 0 - EYE), *words, program=program, at="sample")
    with pytest.raises(torch.linalg.LinAlgError):
        propc.compile(program, validate=False)(leaf(), 0 - EYE)


@pytest.mark.filterwarnings("ignore:.*comparison, rounding")  # log_prob looks for the class
@pytest.mark.parametrize("estimator", ["lr", "enumerate", "gumbel_softmax", "st", "rloo", "local"])
def test_no_false_alarm_where_a_draw_is_more_than_a_draw(estimator: str) -> None:
    """Checks see the program as it is written: no relaxed values, and no plates."""

    def program(theta: Tensor) -> Tensor:
        q = td.OneHotCategorical(logits=theta.expand(B, 3) * torch.arange(3.0))
        z = propc.sample(q, "z")
        return q.log_prob(z) * z[:, 0]

    chosen = propc.estimator("rloo", samples=3) if estimator == "rloo" else estimator
    assert run(program, estimator=chosen)().shape == (B,)


def test_a_value_in_plates_and_in_steps_of_a_scan() -> None:
    def plated(theta: Tensor) -> Tensor:
        z = propc.sample(td.Normal(theta.expand(B), 1.0), "z")
        return td.Gamma(1.0, 1.0).log_prob(-z.abs() - 0.1)

    refused(propc.NonFiniteError, run(plated, estimator=propc.estimator("lr", samples=3)), "Gamma")

    def scanned(theta: Tensor) -> Tensor:
        def step(state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
            x, cost = state
            x = propc.sample(td.Normal(x * theta, 0.1), "x")
            return x, cost + td.Poisson(x.exp()).log_prob(torch.tensor(2.5))

        return propc.scan(step, (theta.expand(B), torch.zeros(B)), 30)[1]

    refused(propc.NonFiniteError, run(scanned, estimator="rp"), "Poisson", program=scanned, at="cost + td.Poisson")


def test_checks_change_nothing_else() -> None:
    """Neither numbers, nor what the program writes, nor what is drawn later."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(2)
            self.register_buffer("count", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            self.count += 1
            x.mul_(0.5)
            z = propc.sample(td.Normal(self.norm(x).sum(1), 1.0), "z")
            return td.Normal(z, 1.0).log_prob(nn.functional.dropout(x, 0.5).sum(1))

    found = []
    for validate in (None, True, False):
        torch.manual_seed(0)
        model = Model()
        compiled, x = propc.compile(model, estimator="rp", validate=validate), torch.rand(B, 2)
        costs = [compiled(x) for _ in range(2)]
        found.append([*costs, x, model.count, model.norm.running_mean, torch.rand(3)])
    for other in found[1:]:
        for a, b in itertools.zip_longest(found[0], other):
            assert torch.equal(a, b)


def test_programs_that_take_gradients_by_themselves() -> None:
    def program(theta: Tensor) -> Tensor:
        z = normal(theta)
        (slope,) = torch.autograd.grad(z.square().sum(), z, create_graph=True)
        return td.Exponential(1.0).log_prob(-slope.abs() - 1)

    refused(propc.NonFiniteError, run(program, estimator="rp"), "Exponential")


def test_a_black_box_does_not_run_for_the_checks() -> None:
    calls: list[Any] = []

    @propc.opaque
    def box(x: Tensor) -> Tensor:
        calls.append(x)
        return x + 1

    def program(theta: Tensor, value: Tensor) -> Tensor:
        z = normal(theta)
        return td.Normal(box(z), 1.0).log_prob(z) + td.Poisson(z.exp()).log_prob(value)

    loose = propc.compile(program, estimator="lr", validate=False)
    loose(leaf(), ones(B))
    before, _ = len(calls), calls.clear()
    refused(propc.NonFiniteError, run(program, 2.5 * ones(B)), "Poisson")
    assert len(calls) <= before


@pytest.mark.parametrize(
    "make",
    [
        lambda t: td.Normal(t.expand(B), torch.ones(B + 1)),
        lambda t: td.MultivariateNormal(t.expand(2), EYE, EYE),
        lambda t: td.Bernoulli(t, t),
    ],
)
def test_what_a_constructor_refuses_names_the_line(make: Callable[[Tensor], Distribution]) -> None:
    error = refused(propc.PropcValueError, run(lambda t: propc.sample(make(t), "z") * t), "cannot be made")
    assert "test_arguments.py" in str(error)


@pytest.mark.parametrize("check", [torch._assert, torch._assert_async])
def test_assertions_of_the_program(check: Callable[..., None]) -> None:
    def program(theta: Tensor, value: Tensor) -> Tensor:
        check((value > 0).all(), "all are positive")
        return normal(theta) * value

    assert run(program, ones(B))().shape == (B,)
    refused(propc.NonFiniteError, run(program, -ones(B)), "all are positive", program=program, at="check(")
