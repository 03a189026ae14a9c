"""Relaxed and straight-through estimators: right where theory says so, and wrong by as much as it says."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import oracles
import pytest
import torch
from programs import OBJECTIVES, vector
from stats import (
    assert_less_variance,
    assert_rejected,
    assert_same_variance,
    check,
    gradient_draws,
    hessian_draws,
)
from torch import Tensor
from torch.distributions import Bernoulli, Independent, Normal, OneHotCategorical

import propc
from propc.distributions.perturbed_logits import Binary
from propc.propagators import Draw, SiteContext, SitePropagator
from propc.runtime.autograd.surrogate_gradient import stand_in

pytestmark = pytest.mark.statistical

Objective = Callable[[Tensor], Tensor]
HARD = ["st", "st_gumbel", "gumbel_rao", "reinmax"]
WEIGHTS = vector(0.3, -0.8, 1.1)
BIT, CHOICE = vector(0.4), vector(0.2, -0.9, 0.5)


def bit(f: Objective) -> Callable[..., Tensor]:
    """One Bernoulli."""

    def program(theta: Tensor, batch: int) -> Tensor:
        return f(propc.sample(Bernoulli(logits=theta.expand(batch, -1)[..., 0]), "b"))

    return program


def choice(f: Objective) -> Callable[..., Tensor]:
    """One choice among as many categories as there are logits; f of a weighted sum."""

    def program(theta: Tensor, batch: int) -> Tensor:
        d = propc.sample(OneHotCategorical(logits=theta.expand(batch, -1)), "d")
        return f(d @ WEIGHTS[: d.shape[-1]])

    return program


PROGRAMS = {"bit": (bit, BIT), "choice": (choice, CHOICE)}
each_program = pytest.mark.parametrize("kind", PROGRAMS)
each_objective = pytest.mark.parametrize("objective", OBJECTIVES)


def outcomes(kind: str) -> Tensor:
    """What f sees of each outcome."""
    return vector(0.0, 1.0) if kind == "bit" else WEIGHTS


def probabilities(kind: str, theta: Tensor) -> Tensor:
    """Of each outcome."""
    if kind == "bit":
        return torch.cat([torch.sigmoid(-theta), torch.sigmoid(theta)])
    return torch.softmax(theta, -1)


def hard_gradient(kind: str, f: Objective) -> Tensor:
    """The exact gradient of E f(b)."""
    return oracles.gradient(lambda p: (probabilities(kind, p) * f(outcomes(kind))).sum(), PROGRAMS[kind][1])


def slopes(kind: str, f: Objective) -> Tensor:
    """∇f at each outcome, [outcome, coordinate of the draw]."""
    points = outcomes(kind).clone().requires_grad_()
    (slope,) = torch.autograd.grad(f(points).sum(), points)
    return slope.unsqueeze(-1) if kind == "bit" else slope.unsqueeze(-1) * WEIGHTS


def compiled(kind: str, f: Objective, estimator: str, **options: Any) -> Any:
    return propc.compile(PROGRAMS[kind][0](f), estimator=propc.estimator(estimator, **options))


def draws(kind: str, f: Objective, estimator: str, rows: int = 200_000, **options: Any) -> Tensor:
    return gradient_draws(compiled(kind, f, estimator, **options), PROGRAMS[kind][1], rows=rows)


# -- straight-through ----------------------------------------------------------------------


def straight_through_mean(kind: str, f: Objective) -> Tensor:
    """E[∇f(b)]ᵀ ∂p/∂θ, in closed form."""

    def surrogate(theta: Tensor) -> Tensor:
        p = probabilities(kind, theta)
        mean = theta.sigmoid() if kind == "bit" else p
        return (p.detach() @ slopes(kind, f)) @ mean

    return oracles.gradient(surrogate, PROGRAMS[kind][1])


@each_objective
@each_program
def test_st_has_the_mean_of_its_rule(kind: str, objective: str) -> None:
    f = OBJECTIVES[objective]
    sampled = draws(kind, f, "st", rows=150_000)
    if objective == "linear" and kind == "bit":  # then it has no variance
        torch.testing.assert_close(sampled, hard_gradient(kind, f).expand_as(sampled))
        return
    check(sampled, straight_through_mean(kind, f), twin=1.1)


@pytest.mark.parametrize("objective", ["quadratic", "exp", "cos"])
@each_program
def test_st_is_biased_where_f_is_curved(kind: str, objective: str) -> None:
    f = OBJECTIVES[objective]
    assert_rejected(draws(kind, f, "st"), hard_gradient(kind, f))


@each_program
def test_st_is_right_where_f_is_linear(kind: str) -> None:
    torch.testing.assert_close(straight_through_mean(kind, OBJECTIVES["linear"]), hard_gradient(kind, lambda x: 3 * x))


# -- ReinMax -------------------------------------------------------------------------------


def second_order_mean(kind: str, f: Objective) -> Tensor:
    """Σ_i ∂p_i Σ_j p_j · ½(∇f(e_i) + ∇f(e_j))ᵀ(e_i − e_j): differences of f by the trapezoidal rule."""
    slope = slopes(kind, f)
    corner = vector(0.0, 1.0).unsqueeze(-1) if kind == "bit" else torch.eye(3, dtype=slope.dtype)
    step = corner.unsqueeze(1) - corner
    difference = 0.5 * ((slope.unsqueeze(1) + slope) * step).sum(-1)

    def surrogate(theta: Tensor) -> Tensor:
        p = probabilities(kind, theta)
        return p @ (difference @ p.detach())

    return oracles.gradient(surrogate, PROGRAMS[kind][1])


@each_objective
@each_program
def test_reinmax_has_the_mean_of_its_rule(kind: str, objective: str) -> None:
    f = OBJECTIVES[objective]
    check(draws(kind, f, "reinmax", rows=150_000), second_order_mean(kind, f), twin=1.1)


@pytest.mark.parametrize("objective", ["linear", "quadratic"])
@each_program
def test_reinmax_is_exact_on_quadratics(kind: str, objective: str) -> None:
    f = OBJECTIVES[objective]
    twin = draws(kind, f, "st_gumbel")
    check(draws(kind, f, "reinmax", rows=150_000), hard_gradient(kind, f), twin=twin)


@each_program
def test_reinmax_is_not_exact_on_a_sine(kind: str) -> None:
    def f(x: Tensor) -> Tensor:
        return torch.sin(3 * x)

    assert_rejected(draws(kind, f, "reinmax"), hard_gradient(kind, f))


def test_reinmax_is_exact_on_quadratics_of_several_sites() -> None:
    """A product of the draws of two sites, and a second site whose logits depend on nothing of the first."""

    def program(theta: Tensor, batch: int) -> Tensor:
        p = theta.expand(batch, -1)
        b = propc.sample(Bernoulli(logits=p[..., 0]), "b")
        d = propc.sample(OneHotCategorical(logits=p[..., 1:]), "d")
        x = b + d @ WEIGHTS
        return x.square() - 2 * b * d[..., 0]

    def model(theta: Tensor, choose: oracles.Choose) -> Tensor:
        b = choose(Bernoulli(logits=theta[0]))
        d = choose(OneHotCategorical(logits=theta[1:]))
        return (b + d @ WEIGHTS).square() - 2 * b * d[0]

    theta = vector(0.4, 0.2, -0.9, 0.5)
    exact = oracles.gradient(lambda p: oracles.enumerate_outcomes(lambda choose: model(p, choose)), theta)
    sampled, twin = (gradient_draws(propc.compile(program, estimator=e), theta) for e in ("reinmax", "st"))
    check(sampled, exact, twin=twin)


# -- Gumbel-softmax ------------------------------------------------------------------------

GRID = torch.linspace(-40.0, 40.0, 400_001, dtype=torch.float64)
STEP = 80.0 / 400_000


def logistic(z: Tensor) -> Tensor:
    """Density of logistic noise."""
    return torch.sigmoid(z) * torch.sigmoid(-z)


def relaxed_bit(theta: Tensor, f: Objective, temperature: float) -> Tensor:
    """E f(y) for a relaxed Bernoulli, by the trapezoidal rule over its noise."""
    return (logistic(GRID) * f(torch.sigmoid((theta + GRID) / temperature))).sum() * STEP


def relaxed_choice(theta: Tensor, f: Objective, temperature: float) -> Tensor:
    """E f(y·w) for a relaxed choice among three, over the two differences of its noise."""
    grid = torch.linspace(-30.0, 30.0, 1201, dtype=torch.float64)
    noise = torch.stack(torch.meshgrid(grid, grid, vector(0.0), indexing="ij"), -1)
    density = 2 * torch.exp(-noise.sum(-1) - 3 * torch.logsumexp(-noise, -1))
    return (density * f(torch.softmax((theta + noise) / temperature, -1) @ WEIGHTS)).sum() * (60.0 / 1200) ** 2


def relaxed(kind: str, f: Objective, temperature: float) -> Callable[[Tensor], Tensor]:
    if kind == "bit":
        return lambda p: relaxed_bit(p[0], f, temperature)
    return lambda p: relaxed_choice(p, f, temperature)


@pytest.mark.parametrize("temperature", [1.0, 0.4])
@each_objective
@each_program
def test_gumbel_softmax_descends_the_relaxed_objective(kind: str, objective: str, temperature: float) -> None:
    f = OBJECTIVES[objective]
    exact = oracles.gradient(relaxed(kind, f, temperature), PROGRAMS[kind][1])
    check(draws(kind, f, "gumbel_softmax", rows=150_000, temperature=temperature), exact)


@each_program
def test_its_value_is_the_relaxed_cost(kind: str) -> None:
    f, theta = OBJECTIVES["quadratic"], PROGRAMS[kind][1]
    with torch.no_grad():
        values = compiled(kind, f, "gumbel_softmax")(theta, batch=200_000).unsqueeze(-1)
    exact = relaxed(kind, f, 1.0)(theta).unsqueeze(-1)
    check(values, exact, twin=1.02)
    assert_rejected(values, (probabilities(kind, theta) * f(outcomes(kind))).sum(-1, keepdim=True))


@each_program
def test_its_bias_falls_with_the_temperature(kind: str) -> None:
    f = OBJECTIVES["quadratic"]
    exact = hard_gradient(kind, f)
    biases = []
    for temperature in (1.0, 0.5, 0.2):
        sampled = draws(kind, f, "gumbel_softmax", rows=150_000, temperature=temperature)
        if temperature > 0.2:
            assert_rejected(sampled, exact)
        biases.append((sampled.mean(0) - exact).abs().max())
    assert biases[1] < 0.6 * biases[0]
    assert biases[2] < 0.6 * biases[1]


@each_program
def test_its_second_derivatives_are_those_of_the_relaxed_objective(kind: str) -> None:
    f, theta = OBJECTIVES["exp"], PROGRAMS[kind][1]
    sampled = hessian_draws(compiled(kind, f, "gumbel_softmax"), theta)
    check(sampled, oracles.hessian(relaxed(kind, f, 1.0), theta), twin=1.4)


# -- straight-through Gumbel-softmax and Gumbel-Rao ----------------------------------------


def straight_through_relaxed(f: Objective, temperature: float) -> Tensor:
    """E[f′(b) · ∂y/∂θ] for a Bernoulli: an integral on each side of zero, where b jumps."""
    z = torch.linspace(0.0, 40.0, 400_001, dtype=torch.float64)
    weights = torch.full_like(z, 40.0 / 400_000)
    weights[[0, -1]] *= 0.5
    slope = slopes("bit", f).squeeze(-1)
    jacobian = logistic(z / temperature) / temperature
    sides = [(weights * logistic(sign * z - BIT) * jacobian).sum() for sign in (-1, 1)]
    return (slope @ torch.stack(sides)).unsqueeze(0)


RELAXED_BACKWARD: dict[str, dict[str, Any]] = {
    "st_gumbel": {},
    "gumbel_rao": {"samples": 1},
    "gumbel_rao, 10 samples": {"samples": 10},
}


@pytest.mark.parametrize("temperature", [1.0, 0.4])
@pytest.mark.parametrize("objective", ["quadratic", "cos"])
@pytest.mark.parametrize("which", RELAXED_BACKWARD)
def test_the_jacobian_of_the_relaxation(which: str, objective: str, temperature: float) -> None:
    f = OBJECTIVES[objective]
    options = {"temperature": temperature, **RELAXED_BACKWARD[which]}
    sampled = draws("bit", f, which.partition(",")[0], rows=150_000, **options)
    check(sampled, straight_through_relaxed(f, temperature))
    if temperature == 1.0:  # colder, the bias is small
        assert_rejected(sampled, hard_gradient("bit", f))


def test_a_choice_between_two_is_a_bernoulli() -> None:
    """One-hot rows of two: the difference of their logits is the logit, and gradients are ± those of it."""

    def program(theta: Tensor, batch: int) -> Tensor:
        logits = torch.stack([torch.zeros_like(theta.expand(batch, -1)[..., 0]), theta.expand(batch, -1)[..., 0]], -1)
        return f(propc.sample(OneHotCategorical(logits=logits), "d")[..., 1])

    f = OBJECTIVES["cos"]
    for which, options in RELAXED_BACKWARD.items():
        estimator = propc.estimator(which.partition(",")[0], **options)
        sampled = gradient_draws(propc.compile(program, estimator=estimator), BIT, rows=150_000)
        check(sampled, straight_through_relaxed(f, 1.0))


@each_program
def test_gumbel_rao_has_the_mean_of_st_gumbel_and_less_variance(kind: str) -> None:
    f = OBJECTIVES["cos"]
    plain, one, many = (
        draws(kind, f, estimator, rows=150_000, temperature=0.3, **options)
        for estimator, options in (("st_gumbel", {}), ("gumbel_rao", {"samples": 1}), ("gumbel_rao", {"samples": 20}))
    )
    nothing = torch.zeros_like(plain[0])
    check(plain - one, nothing, twin=plain - 1.1 * one)
    check(plain - many, nothing, twin=plain - 1.1 * many)
    assert_same_variance(plain, one)
    assert_less_variance(many, plain, times=2.0)


@dataclass(frozen=True)
class ThroughTheNoise(SitePropagator):
    """The twin of Gumbel-Rao whose derivative goes through the noise given the draw, too."""

    name: ClassVar[str] = "through-the-noise"
    passes_path: ClassVar[bool] = True

    def draw(self, site: SiteContext, phi: Sequence[Tensor], tangents: Sequence[Tensor | None]) -> Draw:
        kind, dist = Binary(), site.build(phi)
        b, logits = kind.draw(kind.probs(dist)), kind.logits(dist)
        z = kind.given(b, logits, kind.noise(logits))
        return Draw(stand_in(b, kind.soft(z), self.name, site.error))


def test_the_noise_given_the_draw_counts_as_fixed() -> None:
    f = OBJECTIVES["cos"]
    twin = propc.compile(bit(f), estimator=ThroughTheNoise())
    assert_rejected(gradient_draws(twin, BIT), straight_through_relaxed(f, 1.0))


# -- all that draw hard samples ------------------------------------------------------------


@pytest.mark.parametrize("estimator", HARD)
def test_parameters_behind_the_draw_have_exact_gradients(estimator: str) -> None:
    """The cost is evaluated at hard draws, so E[∂/∂w (d·w)] is p; under a relaxation it is another."""

    def program(theta: Tensor, w: Tensor, batch: int) -> Tensor:
        d = propc.sample(OneHotCategorical(logits=theta.expand(batch, -1)), "d")
        return (d * w).sum(-1)

    def of_w(estimator: Any) -> Tensor:
        return gradient_draws(propc.compile(program, estimator=estimator), CHOICE, WEIGHTS)[:, 3:]

    check(of_w(estimator), torch.softmax(CHOICE, -1), twin=of_w("gumbel_softmax"))


@pytest.mark.parametrize(("estimator", "right"), [("reinmax", True), ("st", False)])
def test_the_toy(estimator: str, right: bool) -> None:
    """E(b − t)², t = 0.499: exact under ReinMax, and under `st` 2(p − t)·p(1 − p)."""
    t = 0.499
    for logit in (0.0, 0.5):
        theta = vector(logit)
        p = torch.sigmoid(theta)
        exact, rule = (1 - 2 * t) * p * (1 - p), 2 * (p - t) * p * (1 - p)
        program = propc.compile(bit(lambda b: (b - t).square()), estimator=estimator)
        sampled = gradient_draws(program, theta, rows=150_000)
        check(sampled, exact if right else rule, twin=sampled + 0.01)
        if logit and not right:
            assert_rejected(sampled, exact)


def nine(law: Callable[[Tensor], Any]) -> Callable[..., Tensor]:
    """Draws of shape [batch, 3, 3] that share one quadratic cost a row."""
    table = torch.linspace(-1.0, 1.0, 9, dtype=torch.float64).reshape(3, 3)

    def program(theta: Tensor, batch: int) -> Tensor:
        x = (propc.sample(law(theta.expand(batch, -1).reshape(batch, 3, 3)), "x") * table).sum((-2, -1))
        return x.square() + x

    return program


@pytest.mark.parametrize(
    "law",
    [
        lambda t: Independent(OneHotCategorical(logits=t), 1),
        lambda t: Independent(Bernoulli(logits=t), 2),
        lambda t: Bernoulli(logits=t),
        lambda t: OneHotCategorical(probs=torch.softmax(t, -1)),
    ],
    ids=["independent-one-hot", "independent-bernoulli", "bernoulli", "one-hot-by-probs"],
)
def test_event_dimensions(law: Callable[[Tensor], Any]) -> None:
    theta = torch.linspace(-0.8, 1.0, 9, dtype=torch.float64)
    table = torch.linspace(-1.0, 1.0, 9, dtype=torch.float64).reshape(3, 3)
    one_hot = "OneHot" in repr(law(theta.reshape(3, 3)))

    def expectation(p: Tensor) -> Tensor:
        """Mean and variance of the sum give its quadratic."""
        rows = p.reshape(3, 3)
        q = torch.softmax(rows, -1) if one_hot else torch.sigmoid(rows)
        mean = (q * table).sum()
        square = (q * table**2).sum(-1) - (q * table).sum(-1) ** 2 if one_hot else q * (1 - q) * table**2
        return mean**2 + square.sum() + mean

    sampled, twin = (gradient_draws(propc.compile(nine(law), estimator=e), theta) for e in ("reinmax", "st_gumbel"))
    check(sampled, oracles.gradient(expectation, theta), twin=twin)


def test_among_other_sites_and_costs() -> None:
    """A bit feeds a Normal and, through another bit's logits, a likelihood ratio; two costs, weighted by the user."""

    def program(theta: Tensor, batch: int) -> tuple[Tensor, Tensor]:
        p = theta.expand(batch, -1)
        b = propc.sample(Bernoulli(logits=p[..., 0]), "b", estimator="reinmax")
        x = propc.sample(Normal(p[..., 1] * b, 0.6), "x", estimator="rp")
        c = propc.sample(Bernoulli(probs=0.2 + 0.5 * b), "c", estimator="lr")
        return x.square() + b, torch.cos(2 * c)

    def expectation(p: Tensor) -> Tensor:
        def of_b(b: Tensor) -> Tensor:
            q = 0.2 + 0.5 * b
            last = q * torch.cos(vector(2.0)) + 1 - q
            return 2 * ((p[1] * b).square() + 0.36 + b) - 3 * last

        q = torch.sigmoid(p[0])
        return (q * of_b(vector(1.0)) + (1 - q) * of_b(vector(0.0))).sum()

    theta = vector(0.3, 0.8)
    program_ = propc.compile(program)
    sampled = gradient_draws(program_, theta, rows=150_000, cost=lambda costs: 2 * costs[0] - 3 * costs[1])
    check(sampled, oracles.gradient(expectation, theta))


FIRST = {
    "samples": propc.estimator("lr", samples=4),
    "common": propc.estimator("rloo", samples=2, noise="common"),
    "enumerate": "enumerate",
}


@pytest.mark.parametrize("first", FIRST.values(), ids=FIRST)
def test_in_plates(first: Any) -> None:
    """A bit and a choice whose logits lie in the plate of an earlier site; the cost is quadratic in both."""

    def program(theta: Tensor, batch: int) -> Tensor:
        p = theta.expand(batch, -1)
        z = propc.sample(Bernoulli(logits=p[..., 0]), "z", estimator=first)
        b = propc.sample(Bernoulli(logits=p[..., 1] + z), "b")
        d = propc.sample(OneHotCategorical(logits=p[..., 2:] * (1 + z[..., None])), "d")
        return (b + d @ WEIGHTS).square() - z * b

    def model(theta: Tensor, choose: oracles.Choose) -> Tensor:
        z = choose(Bernoulli(logits=theta[0]))
        b = choose(Bernoulli(logits=theta[1] + z))
        d = choose(OneHotCategorical(logits=theta[2:] * (1 + z)))
        return (b + d @ WEIGHTS).square() - z * b

    theta = vector(0.4, -0.3, 0.2, -0.9, 0.5)
    exact = oracles.gradient(lambda p: oracles.enumerate_outcomes(lambda choose: model(p, choose)), theta)
    sampled, twin = (
        gradient_draws(propc.compile(program, estimator=e), theta, rows=100_000) for e in ("reinmax", "st")
    )
    check(sampled, exact, twin=twin)


@pytest.mark.parametrize("estimator", ["gumbel_softmax", *HARD])
def test_a_plate_of_equal_elements_changes_nothing(estimator: str) -> None:
    """With an earlier site of no influence in a plate of three, the draws of a site are three times as many."""

    def program(theta: Tensor, batch: int) -> Tensor:
        z = propc.sample(Bernoulli(logits=theta.expand(batch, -1)[..., 0]), "z")
        d = propc.sample(OneHotCategorical(logits=theta.expand(batch, -1) + 0 * z[..., None]), "d")
        return torch.sin(d @ WEIGHTS)

    one, three = (
        gradient_draws(propc.compile(program, estimator={"z": first, "d": estimator}), CHOICE, rows=100_000)
        for first in (propc.estimator("lr", baseline=None), propc.estimator("lr", samples=3))
    )
    nothing = torch.zeros_like(CHOICE)
    check(one - three, nothing, twin=one - 1.2 * three)
