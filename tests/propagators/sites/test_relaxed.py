"""Relaxed and straight-through estimators: what the program runs on, what they refuse, and what they say."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import (
    Bernoulli,
    Categorical,
    Distribution,
    Gamma,
    Independent,
    Normal,
    OneHotCategorical,
    Poisson,
)

import propc
from propc.distributions.perturbed_logits import Binary, Categories, Family
from propc.distributions.spec import take_apart
from propc.errors import EstimatorError
from propc.propagators import (
    GumbelRaoRule,
    GumbelSoftmaxRule,
    ReinMaxRule,
    SiteContext,
    StraightThroughGumbelRule,
    StraightThroughRule,
)
from propc.propagators.sites.temperature import Temperature
from propc.types import Source

HARD = ["st", "st_gumbel", "gumbel_rao", "reinmax"]
ALL = ["gumbel_softmax", *HARD]
LAWS: dict[str, Any] = {
    "bernoulli": lambda t: Bernoulli(logits=t),
    "bernoulli-probs": lambda t: Bernoulli(probs=t.sigmoid()),
    "one-hot": lambda t: OneHotCategorical(logits=t),
    "one-hot-probs": lambda t: Independent(OneHotCategorical(probs=t.softmax(-1)), 1),
    "independent": lambda t: Independent(Independent(Bernoulli(logits=t), 1), 1),
}
PLACE = r"at site 'z' \(test_relaxed.py:\d+\): "
each_law = pytest.mark.parametrize("law", LAWS.values(), ids=LAWS)
each_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)


def draw_of(law: Any, estimator: Any) -> Any:
    """A program whose cost is a sum over the draw; it returns the draw too."""

    def program(theta: Tensor) -> tuple[Tensor, Tensor]:
        z = propc.sample(law(theta), "z")
        return z.sin().flatten(1).sum(1), z

    return propc.compile(program, estimator=estimator)


def theta_of(dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(50, 3, 4, dtype=dtype, requires_grad=True)


@each_dtype
@each_law
@pytest.mark.parametrize("estimator", HARD)
def test_the_program_runs_on_hard_draws(estimator: str, law: Any, dtype: torch.dtype) -> None:
    theta = theta_of(dtype)
    cost, z = draw_of(law, estimator)(theta)
    assert z.dtype == dtype
    assert ((z == 0) | (z == 1)).all()
    if "OneHot" in repr(law(theta)):
        assert (z.sum(-1) == 1).all()
    cost.sum().backward()
    assert theta.grad is not None
    assert theta.grad.dtype == dtype
    assert theta.grad.abs().sum() > 0


@each_dtype
@each_law
@pytest.mark.parametrize("gradient", ["wanted", "switched off", "not wanted"])
def test_gumbel_softmax_runs_on_relaxed_draws(law: Any, dtype: torch.dtype, gradient: str) -> None:
    """With gradients or without, as the value returned is the relaxed cost."""
    theta = theta_of(dtype).requires_grad_(gradient != "not wanted")
    with torch.set_grad_enabled(gradient != "switched off"):
        _, z = draw_of(law, "gumbel_softmax")(theta)
    assert z.dtype == dtype
    assert ((z > 0) & (z < 1)).all()
    if "OneHot" in repr(law(theta)):
        torch.testing.assert_close(z.sum(-1), torch.ones_like(z[..., 0]))


def test_gumbel_softmax_is_the_same_draw_with_and_without_gradients() -> None:
    compiled = draw_of(LAWS["one-hot"], propc.estimator("gumbel_softmax", temperature=0.5))
    theta = theta_of()
    torch.manual_seed(1)
    _, with_gradients = compiled(theta)
    torch.manual_seed(1)
    with torch.no_grad():
        _, without = compiled(theta)
    torch.manual_seed(1)
    logits = theta.log_softmax(-1)
    by_hand = torch.softmax((logits + Categories().noise(logits)) / 0.5, -1)
    torch.testing.assert_close(with_gradients, by_hand)
    torch.testing.assert_close(without, by_hand)


def test_other_sites_only_draw_without_gradients() -> None:
    """What gumbel_softmax has no rule for, or what draws hard, is left alone where no gradient is wanted."""

    def program(theta: Tensor) -> Tensor:
        noise = propc.sample(Normal(torch.zeros(50), 1.0), "noise")
        index = propc.sample(Categorical(logits=torch.zeros(50, 3)), "index")
        return noise + index + propc.sample(Bernoulli(logits=theta), "z")

    compiled = propc.compile(program, estimator="gumbel_softmax")
    sites = compiled.graph(torch.zeros(50, requires_grad=True)).sites
    assert [site.estimator for site in sites] == ["plain", "plain", "gumbel_softmax"]
    with torch.no_grad():
        compiled.with_estimator("st")(torch.zeros(50))
        compiled(torch.zeros(50))


def test_explain_says_where_no_gradient_goes() -> None:
    rows = draw_of(LAWS["bernoulli"], "gumbel_softmax").explain(torch.zeros(5, 3, 4)).rows
    assert [(row["estimator"], row["why"]) for row in rows] == [
        ("plain", "no parameter before it wants a gradient"),
    ]


def test_a_relaxed_site_whose_gradient_ends_draws_relaxed() -> None:
    """Its only way to θ is closed by a site that keeps its cotangents: it is pruned, and its draw stays relaxed."""

    def program(theta: Tensor) -> tuple[Tensor, Tensor]:
        first = propc.sample(Bernoulli(logits=theta), "first", estimator="lr")
        z = propc.sample(Bernoulli(logits=2 * first), "z")
        return z + first, z

    compiled = propc.compile(program, estimator="gumbel_softmax")
    theta = torch.zeros(50, requires_grad=True)
    assert [site.estimator for site in compiled.graph(theta).sites] == ["lr", "plain"]
    _, z = compiled(theta)
    assert ((z > 0) & (z < 1)).all()


# -- gradients against autograd ------------------------------------------------------------


RULES: dict[str, Any] = {
    "gumbel_softmax": lambda kind: GumbelSoftmaxRule(kind, Temperature(0.7)),
    "st": StraightThroughRule,
    "st_gumbel": lambda kind: StraightThroughGumbelRule(kind, Temperature(0.7)),
    "gumbel_rao": lambda kind: GumbelRaoRule(kind, Temperature(0.7), 4),
    "reinmax": ReinMaxRule,
}


def by_hand(name: str, kind: Family, logits: Tensor, slope: Tensor) -> Tensor:
    """The cotangent on the logits for one on the draw, written out; draws as the rule does, from the same seed."""
    p = kind.soft(logits).detach()
    if name in ("st", "gumbel_rao", "reinmax"):
        b = kind.draw(p)
    if name == "st":
        return _through(kind, p, slope)
    if name == "reinmax":
        return 2 * _through(kind, (p + b) / 2, slope) - _through(kind, p, slope) / 2
    if name == "gumbel_rao":
        many = logits.detach().expand(4, *logits.shape)
        z = kind.given(b, logits.detach(), kind.noise(many))
        return _through(kind, kind.soft(z / 0.7), slope).mean(0) / 0.7
    z = logits.detach() + kind.noise(logits)
    return _through(kind, kind.soft(z / 0.7), slope) / 0.7


def _through(kind: Family, mean: Tensor, slope: Tensor) -> Tensor:
    """The Jacobian of the softmax, or of the logistic function, where it gives `mean`."""
    if isinstance(kind, Binary):
        return mean * (1 - mean) * slope
    return mean * (slope - (mean * slope).sum(-1, keepdim=True))


@pytest.mark.parametrize("plates", [(), (2,)], ids=["flat", "plates"])
@pytest.mark.parametrize("kind", [Binary(), Categories()], ids=["binary", "categories"])
@pytest.mark.parametrize("name", RULES)
def test_the_algebra_of_a_draw(name: str, kind: Family, plates: tuple[int, ...]) -> None:
    """One site against formulas, also where φ has leading dimensions that the distribution knows nothing of."""
    raw = torch.randn(*plates, 5, 3, 4)
    logits = (raw if isinstance(kind, Binary) else raw.log_softmax(-1)).requires_grad_()
    made = Bernoulli if isinstance(kind, Binary) else OneHotCategorical
    spec, _ = take_apart(made(logits=torch.zeros(5, 3, 4), validate_args=False))
    site = SiteContext("z", spec, (5, 3, 4), Source("", 0), 5, spec.builder())
    slope = torch.randn(*plates, 5, 3, 4)
    torch.manual_seed(1)
    value = RULES[name](kind).draw(site, [logits], [None]).value
    (gradient,) = torch.autograd.grad(value, logits, slope)
    torch.manual_seed(1)
    torch.testing.assert_close(gradient, by_hand(name, kind, logits, slope))


@pytest.mark.parametrize("estimator", ALL)
def test_a_category_that_is_ruled_out(estimator: str) -> None:
    """A logit of −∞ is drawn never, and its gradient is zero."""
    raw = torch.randn(200, 4, requires_grad=True)
    mask = torch.tensor([0.0, -torch.inf, 0.0, 0.0])
    compiled = propc.compile(
        lambda raw: propc.sample(OneHotCategorical(logits=raw + mask), "z") @ torch.arange(4.0).double(),
        estimator=estimator,
    )
    compiled(raw).square().sum().backward()
    assert raw.grad is not None
    assert raw.grad.isfinite().all()
    assert (raw.grad[:, 1] == 0).all()
    assert (raw.grad[:, 0] != 0).any()


@pytest.mark.parametrize("estimator", HARD)
def test_the_user_may_write_into_the_draw(estimator: str) -> None:
    def program(theta: Tensor) -> Tensor:
        return propc.sample(Bernoulli(logits=theta), "z").mul_(2.0).sin()

    theta = torch.randn(50, requires_grad=True)
    propc.compile(program, estimator=estimator)(theta).sum().backward()
    assert theta.grad is not None


@pytest.mark.parametrize("estimator", ALL)
def test_messages_give_the_same_gradient(estimator: str) -> None:
    compiled = propc.compile(
        lambda theta: propc.sample(OneHotCategorical(logits=theta), "z").cumsum(-1).sin().sum(-1), estimator=estimator
    )
    theta = torch.randn(20, 4, requires_grad=True)
    torch.manual_seed(1)
    (gradient,) = torch.autograd.grad(compiled(theta).mean(), theta)
    torch.manual_seed(1)
    sent = compiled.propagate("backward", None, theta).messages["theta"].grad
    torch.testing.assert_close(sent, gradient)


# -- refusals ------------------------------------------------------------------------------


def refused(law: Any, estimator: str, f: Any = lambda z: z) -> str:
    def program(theta: Tensor) -> Tensor:
        return f(propc.sample(law(theta), "z")).flatten(1).sum(1)

    with pytest.raises(EstimatorError) as caught:
        propc.compile(program, estimator=estimator)(theta_of())
    return str(caught.value)


@pytest.mark.parametrize("estimator", ALL)
@pytest.mark.parametrize(
    ("law", "instead"),
    [
        (lambda t: Normal(t, 1.0), "rp"),
        (lambda t: Independent(Gamma(t.exp(), 1.0), 1), "rp"),
        (lambda t: Poisson(t.exp()), "lr"),
    ],
    ids=["normal", "gamma", "poisson"],
)
def test_other_distributions(law: Any, instead: str, estimator: str) -> None:
    text = refused(law, estimator)
    assert f"estimator {estimator!r} needs a Bernoulli or OneHotCategorical distribution; got " in text
    assert text.startswith("at site 'z' (test_relaxed.py:")
    assert text.endswith(f"Try estimator='{instead}'.")


@pytest.mark.parametrize("estimator", ALL)
@pytest.mark.parametrize("use", [lambda z: torch.eye(4)[z], lambda z: z.double()], ids=["index", "number"])
def test_an_integer_class_lets_no_gradient_through(use: Any, estimator: str) -> None:
    text = refused(lambda t: Categorical(logits=t), estimator, use)
    assert "Categorical(logits) draws an integer, which lets none through. Draw from OneHotCategorical" in text


@pytest.mark.parametrize("estimator", ALL)
@pytest.mark.parametrize(
    "cut",
    [torch.detach, torch.round, propc.opaque(torch.sin), lambda z: (z > 0.5).double()],
    ids=["detach", "round", "opaque", "compare"],
)
def test_no_path_to_the_cost(cut: Any, estimator: str) -> None:
    text = refused(LAWS["bernoulli"], estimator, cut)
    assert (
        f"estimator {estimator!r} needs a differentiable path from the draw to every cost; none leads to 'cost'" in text
    )
    assert "Try estimator='lr'" in text


@pytest.mark.parametrize("estimator", ALL)
def test_a_jump_beside_the_path_is_a_warning(estimator: str) -> None:
    def program(theta: Tensor) -> Tensor:
        z = propc.sample(Bernoulli(logits=theta), "z")
        return z.sin() * (z > 0.5).double()

    with pytest.warns(propc.PropcWarning, match=r"site 'z' .*also reaches 'cost.*comparison"):
        propc.compile(program, estimator=estimator)(torch.zeros(50, requires_grad=True))


@pytest.mark.parametrize("estimator", HARD)
def test_second_derivatives_of_a_rule_are_refused(estimator: str) -> None:
    theta = theta_of()
    cost, _ = draw_of(LAWS["one-hot"], estimator)(theta)
    with pytest.raises(EstimatorError, match=PLACE + rf"estimator {estimator!r} gives first derivatives only"):
        torch.autograd.grad(cost.sum(), theta, create_graph=True)


@pytest.mark.parametrize("estimator", HARD)
def test_second_derivatives_of_what_is_behind_are_allowed(estimator: str) -> None:
    def program(theta: Tensor, w: Tensor) -> Tensor:
        return (propc.sample(Bernoulli(logits=theta), "z") * w).square()

    w = torch.ones(50, requires_grad=True)
    cost = propc.compile(program, estimator=estimator)(torch.zeros(50, requires_grad=True), w)
    (first,) = torch.autograd.grad(cost.sum(), w, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), w)
    torch.testing.assert_close(second, 2 * cost.detach())


@pytest.mark.parametrize("samples", [0, -1, 2.0, "many"])
def test_samples(samples: Any) -> None:
    with pytest.raises(propc.PropcValueError, match=r"samples=.* must be a positive integer"):
        propc.estimator("gumbel_rao", samples=samples)


def test_a_distribution_of_the_users_own_is_no_bernoulli() -> None:
    """Its draws may be anything."""

    class Shifted(Bernoulli):
        def sample(self, *shape: Any) -> Tensor:
            return super().sample(*shape) + 1

    law: type[Distribution] = Shifted
    assert "needs a Bernoulli or OneHotCategorical" in refused(lambda t: law(logits=t), "st")
