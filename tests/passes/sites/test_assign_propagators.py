"""Which rule a site gets: names, objects, mappings, functions, requests, and what is never trained."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import (
    AffineTransform,
    Bernoulli,
    Beta,
    Categorical,
    Distribution,
    Exponential,
    ExpTransform,
    Gamma,
    Gumbel,
    HalfNormal,
    Independent,
    Kumaraswamy,
    MixtureSameFamily,
    Normal,
    Pareto,
    SigmoidTransform,
    TransformedDistribution,
    Uniform,
    Weibull,
)

import propc
from propc.estimators import Estimator, SiteView
from propc.propagators import InverseVariance, LikelihoodRatioRule, PathwiseRule, Plain

BATCH = 4


def model(theta: Tensor) -> Tensor:
    p = theta.expand(BATCH)
    z = propc.sample(Bernoulli(logits=p), "z")
    x0 = propc.sample(Normal(p + z, 1.0), "x0")
    x1 = propc.sample(Gamma(torch.exp(x0 * p), 1.0), "x1")
    asked = propc.sample(Normal(x1 * p, 1.0), "asked", estimator="lr")
    return (asked + z + x0).square()


def rules(estimator: Any, theta: Tensor | None = None) -> dict[str, str]:
    theta = torch.tensor(0.5, requires_grad=True) if theta is None else theta
    graph = propc.compile(model, estimator=estimator).graph(theta)
    return {site.name: site.estimator for site in graph.sites}


def by_view(site: SiteView) -> Any:
    return propc.estimator("tp", weights="past") if site.spec.has_rsample and site.name != "x1" else None


RULES = [
    ("infer", "lr rp rp lr"),
    ("lr", "lr lr lr lr"),
    (propc.estimator("lr", baseline=None), "lr lr lr lr"),
    ({"z": "lr", "*": "tp"}, "lr tp tp lr"),
    ({"x*": "rp", "x1": "tp", "z": "lr"}, "lr rp rp lr"),  # the first pattern that matches
    ({"x1": "tp"}, "lr rp tp lr"),  # others are inferred
    (by_view, "lr tp rp lr"),
]


@pytest.mark.parametrize(("estimator", "expected"), RULES, ids=[str(i) for i in range(len(RULES))])
def test_choice(estimator: Any, expected: str) -> None:
    graph = propc.compile(model, estimator=estimator).graph(torch.tensor(0.5, requires_grad=True))
    kinds = {PathwiseRule: "rp", LikelihoodRatioRule: "lr", InverseVariance: "tp"}
    assert [kinds[type(site.rule)] for site in graph.sites] == expected.split()
    assert all(site.reason for site in graph.sites)


@pytest.mark.parametrize("trained", [True, False])
def test_a_function_is_called_once_a_site(trained: bool) -> None:
    """Also where an estimator that it gives brings passes, and where a site draws without a gradient."""
    seen: list[str] = []

    def choose(site: SiteView) -> Any:
        seen.append(site.name)
        return propc.estimator("gs", at="x") if site.name == "x" else None

    def program(theta: Tensor) -> Tensor:
        still = propc.sample(Normal(torch.zeros(8, 1), 1.0), "still")
        x = propc.sample(Normal(theta + still, 1.0), "x")
        return propc.sample(Normal(x, 1.0), "y").square().sum(-1)

    graph = propc.compile(program, estimator=choose).graph(torch.tensor(0.5, requires_grad=trained))
    assert sorted(seen) == ["still", "x", "y"]
    assert {site.estimator for site in graph.sites} == ({"plain", "gs", "rp"} if trained else {"plain"})


def test_nothing_wants_a_gradient() -> None:
    assert set(rules("lr", torch.tensor(0.5)).values()) == {"plain"}


def test_impossible_choice_is_no_error_where_nothing_is_trained() -> None:
    """`rp` at a Bernoulli prior: nothing before it wants a gradient."""

    def program(theta: Tensor) -> Tensor:
        z = propc.sample(Bernoulli(torch.full((BATCH,), 0.5)), "z")
        return propc.sample(Normal(theta * z, 1.0), "x").square()

    graph = propc.compile(program, estimator="rp").graph(torch.tensor(0.5, requires_grad=True))
    assert [type(s.rule) for s in graph.sites] == [Plain, PathwiseRule]


class _Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(0.5))


class _Carrying(Normal):
    """A user's distribution that holds a network: parameters that no input of the site shows."""

    def __init__(self, loc: Tensor, net: _Net) -> None:
        self.net = net
        super().__init__(loc, 1.0)

    def log_prob(self, value: Tensor) -> Tensor:
        return super().log_prob(value * self.net.scale)


def test_a_distribution_that_holds_a_network_is_trained() -> None:
    net = _Net()

    @propc.compile(estimator="lr")
    def program(x: Tensor) -> Tensor:
        return propc.sample(_Carrying(x, net), "x").square()

    assert isinstance(program.graph(torch.zeros(BATCH)).sites[0].rule, LikelihoodRatioRule)
    program(torch.zeros(BATCH)).sum().backward()
    assert net.scale.grad is not None


@pytest.mark.parametrize(
    ("estimator", "words"),
    [
        ({"y*": "lr"}, r"pattern 'y\*'.*matches no site.*'x0'"),
        ({"askd": "lr"}, r"pattern 'askd'.*Did you mean 'asked'"),
        ("rp", r"site 'z' \(test_assign_propagators.py:\d+\).*'rp'.*no rsample.*Try estimator='lr'"),
        (lambda site: "tpp", r"site 'z'.*unknown estimator 'tpp'.*Did you mean 'tp'"),
        (lambda site: 3, r"site 'z'.*got 3"),
    ],
)
def test_refused(estimator: Any, words: str) -> None:
    with pytest.raises(propc.PropcError, match=words):
        rules(estimator)


@pytest.mark.parametrize("estimator", ["lr", "tp", propc.estimator("combine", estimators=("lr", "rp"))])
def test_scalar_cost_is_refused(estimator: Any) -> None:
    compiled = propc.compile(
        lambda theta: propc.sample(Normal(theta.expand(BATCH), 1.0), "x").mean(), estimator=estimator
    )
    name = propc.estimators.resolve(estimator).name
    with pytest.raises(propc.PropcError, match=rf"site 'x'.*'{name}'.*cost is a scalar.*\[batch\]"):
        compiled.graph(torch.tensor(0.5, requires_grad=True))


@pytest.mark.parametrize("estimator", ["lr", "tp", propc.estimator("combine", estimators=("lr", "rp"))])
def test_a_missing_batch_is_refused(estimator: Any) -> None:
    """The error names what the user chose, not a part of it."""
    theta, name = torch.tensor(0.5, requires_grad=True), propc.estimators.resolve(estimator).name
    shared = propc.compile(lambda th: propc.sample(Normal(th, 1.0), "x").expand(BATCH), estimator=estimator)
    with pytest.raises(propc.PropcError, match=rf"site 'x'.*'{name}' needs the batch.*batch shape \[\]"):
        shared.graph(theta)
    single = propc.compile(lambda th: propc.sample(Normal(th.expand(1), 1.0), "x"), estimator=estimator)
    with pytest.raises(propc.PropcError, match=rf"site 'x'.*'{name}' has a leave-one-out baseline and a batch of 1"):
        single.graph(theta)


def test_a_site_whose_cost_is_a_table_is_refused() -> None:
    """What is returned has two dimensions, so it is no cost; under `lr` the gradient would be zero."""
    compiled = propc.compile(lambda th: propc.sample(Normal(th.expand(BATCH, 2), 1.0), "x").square(), estimator="lr")
    with pytest.raises(propc.PropcError, match=r"site 'x'.*float64\[4, 2\].*Sum the returned cost"):
        compiled.graph(torch.tensor(0.5, requires_grad=True))


@pytest.mark.parametrize(("kind", "shown"), [(torch.int64, "int64"), (torch.bool, "bool")])
def test_a_site_whose_cost_is_an_integer_is_refused(kind: torch.dtype, shown: str) -> None:
    compiled = propc.compile(lambda th: propc.sample(Normal(th.expand(BATCH), 1.0), "x").to(kind), estimator="lr")
    with pytest.raises(propc.PropcError, match=rf"site 'x'.*{shown}\[4\].*\.float\(\)") as caught:
        compiled.graph(torch.tensor(0.5, requires_grad=True))
    assert "Sum" not in str(caught.value)


ROUGH: dict[str, Callable[[Tensor], Tensor]] = {
    "converted": lambda x: x.square() * (x > 0.5).to(x.dtype),
    "a factor": lambda x: x.square() * (x > 0.5),
    "in front": lambda x: (x > 0.5) * x.square(),
    "in place": lambda x: x.square().mul_(x > 0.5),
    "divided by": lambda x: x.square() / (1 + x.long()),
    "a sum": lambda x: (x.sin() + torch.bucketize(x, torch.tensor([0.0, 1.0]))).tanh(),
}
SELECTED: dict[str, Callable[[Tensor], Tensor]] = {
    "where": lambda x: torch.where(x > 0, x, -x),
    "masked": lambda x: x.square().masked_fill(x < 0, 0.0),
    "index": lambda x: torch.stack([x, -x], -1).gather(-1, (x < 0).long()[:, None]).squeeze(-1),
}


@pytest.mark.parametrize("cost", SELECTED)
def test_a_condition_that_selects_is_no_rough_path(cost: str) -> None:
    drawn = propc.compile(lambda theta: SELECTED[cost](propc.sample(Normal(theta.expand(BATCH), 1.0), "x")))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        drawn.graph(torch.tensor(0.5, requires_grad=True))


@pytest.mark.parametrize("cost", ROUGH)
def test_rough_path_warns(cost: str) -> None:
    def program(theta: Tensor) -> Tensor:
        return ROUGH[cost](propc.sample(Normal(theta.expand(BATCH), 1.0), "x"))

    theta = torch.tensor(0.5, requires_grad=True)
    with pytest.warns(propc.PropcWarning, match=r"site 'x'.*comparison.*Use 'lr'"):
        propc.compile(program, estimator={"x": "rp"}).graph(theta)
    propc.compile(program, estimator="lr").graph(theta)  # no warning


@pytest.mark.parametrize("interval", [1, 2, 3])
def test_k_interval(interval: int) -> None:
    """Counted from the end: every interval-th site computes weights, those before it reuse them."""

    def program(theta: Tensor) -> Tensor:
        x = torch.zeros(BATCH)
        for t in range(6):
            x = propc.sample(Normal(torch.sin(theta + x), 1.0), f"x{t}")
        return x.square()

    compiled = propc.compile(program, estimator=propc.estimator("tp", k_interval=interval))
    graph = compiled.graph(torch.tensor(0.5, requires_grad=True))
    donors = [site.rule.donor for site in graph.sites]  # type: ignore[union-attr]
    own = [5 - i for i in range(0, 6, interval)]
    for i, donor in enumerate(donors):
        assert donor == (None if i in own else f"x{min(o for o in own if o > i)}")


def test_k_interval_with_a_mapping() -> None:
    """A site of another shape or rule computes its own weights."""
    tp = propc.estimator("tp", k_interval=4)

    def program(theta: Tensor) -> Tensor:
        a = propc.sample(Normal(theta.expand(BATCH), 1.0), "a")
        b = propc.sample(Normal(theta + a[:, None] * torch.ones(2), 1.0), "b")
        c = propc.sample(Normal(theta + b, 1.0), "c")
        return c.sum(1)

    graph = propc.compile(program, estimator=tp).graph(torch.tensor(0.5, requires_grad=True))
    assert [s.rule.donor for s in graph.sites] == [None, "c", None]  # type: ignore[union-attr]


def test_estimator_names_and_objects_agree() -> None:
    assert isinstance(propc.estimator("lr"), Estimator)
    assert rules("lr") == rules(propc.estimator("lr"))


UNIT = torch.zeros(BATCH), torch.ones(BATCH)
MOVING = {
    "Uniform": (lambda a: Uniform(torch.zeros(BATCH), a), "high"),
    "Uniform, both": (lambda a: Independent(Uniform(a - 1, a), 0), "low' and 'base_dist.high"),
    "Pareto": (lambda a: Pareto(a, 3.0), "scale"),
    "scaled Uniform": (
        lambda a: TransformedDistribution(Uniform(*UNIT), [AffineTransform(0.0, a)]),
        "transforms.0.scale",
    ),
    "shifted Exponential": (lambda a: TransformedDistribution(Exponential(a), [AffineTransform(a, 1.0)]), "loc"),
    "scaled logarithm": (
        lambda a: TransformedDistribution(Beta(a, a), [ExpTransform().inv, AffineTransform(a, a)]),
        "transforms.1.loc",
    ),
    "mixture": (
        lambda a: MixtureSameFamily(Categorical(torch.ones(BATCH, 2)), Uniform(torch.zeros(BATCH, 2), a[:, None] + 1)),
        "_component_distribution.high",
    ),
}
FIXED = {
    "Uniform": lambda a: Uniform(torch.zeros(BATCH), (a > 0) + 0.0),
    "Pareto": lambda a: Pareto(torch.ones(BATCH), a),
    "scaled Exponential": lambda a: TransformedDistribution(Exponential(a), [AffineTransform(0.0, a)]),
    "shifted Normal": lambda a: TransformedDistribution(Normal(a, a), [AffineTransform(a, a)]),
    "logistic": lambda a: TransformedDistribution(Uniform(*UNIT), [SigmoidTransform().inv, AffineTransform(a, a)]),
    "Gumbel": lambda a: Gumbel(a, a),
    "Weibull": lambda a: Weibull(a, a),
    "HalfNormal": lambda a: HalfNormal(a),
    "Kumaraswamy": lambda a: Kumaraswamy(a, a),
}


def drawn(law: Callable[[Tensor], Distribution]) -> Callable[[Tensor], Tensor]:
    return lambda theta: propc.sample(law(theta.expand(BATCH)), "x")


@pytest.mark.parametrize("estimator", ["lr", "tp", "rloo", propc.estimator("combine", weights="past")], ids=range(4))
@pytest.mark.parametrize("name", MOVING)
def test_a_support_that_moves_is_refused(name: str, estimator: Any) -> None:
    law, parameter = MOVING[name]
    theta = torch.tensor(0.7, requires_grad=True)
    estimator = estimator if law(theta.expand(BATCH)).has_rsample else "lr"
    with pytest.raises(propc.EstimatorError, match=f"'x'.*the support of .* moves with '.*{parameter}'"):
        propc.compile(drawn(law), estimator=estimator).graph(theta)
    propc.compile(drawn(law), estimator=estimator).graph(theta.detach())
    if law(theta.expand(BATCH)).has_rsample:
        propc.compile(drawn(law), estimator="rp").graph(theta)


@pytest.mark.parametrize("name", FIXED)
def test_a_support_that_stays(name: str) -> None:
    propc.compile(drawn(FIXED[name]), estimator="lr").graph(torch.tensor(0.7, requires_grad=True))


def test_a_support_that_moves_with_a_draw() -> None:
    """Where the draw passes no gradient on, none is lost."""

    def program(theta: Tensor) -> Tensor:
        x = propc.sample(Normal(theta.expand(BATCH), 1.0), "x")
        return propc.sample(Uniform(x, x + 1), "y")

    theta = torch.tensor(0.7, requires_grad=True)
    propc.compile(program, estimator="lr").graph(theta)
    with pytest.raises(propc.EstimatorError, match=r"site 'y'.*moves with 'low' and 'high'"):
        propc.compile(program, estimator={"x": "rp", "y": "lr"}).graph(theta)
