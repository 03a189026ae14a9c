"""Alternatives: what is copied and what is read of the originals, names, plates, gradients, and what is refused."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import (
    Bernoulli,
    Binomial,
    Categorical,
    Gamma,
    Independent,
    MultivariateNormal,
    Normal,
    OneHotCategorical,
    Poisson,
)

import propc
from propc.errors import EstimatorError, GraphError, NonFiniteError, PropcValueError
from propc.ir import CompareAlternatives, Node, Plate, Segment, Site
from propc.passes import ExploreAlternatives
from propc.propagators import Draw, EnumerateRule, Plain, SiteContext, SitePropagator, row_log_prob, token

BATCH = 6
THETA = torch.tensor([0.3, -0.4], dtype=torch.float64)


def param() -> Tensor:
    return THETA.clone().requires_grad_()


def local(**options: Any) -> Any:
    return propc.estimator("local", **options)


def bits(theta: Tensor, name: str = "z") -> Tensor:
    return propc.sample(Bernoulli(logits=theta.expand(BATCH, 2)), name)


def graph_of(program: Any, estimator: Any = "local", **options: Any) -> propc.PropagationGraph:
    return propc.compile(program, estimator=estimator, **options).graph(param())


def copies(graph: propc.PropagationGraph) -> dict[str, Node]:
    return {node.name: node for node in graph if node.copy_of}


def gradient(program: Any, estimator: Any = "local", seed: int = 0, **options: Any) -> Tensor:
    theta = param()
    torch.manual_seed(seed)
    costs = propc.compile(program, estimator=estimator, **options)(theta)
    return torch.autograd.grad(costs.sum(), theta)[0]


# -- what is copied -----------------------------------------------------------------------


def encoded(theta: Tensor) -> Tensor:
    seen = torch.tanh(theta * 2).exp()
    z = propc.sample(Bernoulli(logits=seen.expand(BATCH, 2)), "z")
    weight = seen.square().cos()
    y = propc.sample(Normal((z * weight).sum(-1), 1.0), "y")
    return propc.cost(y.square(), "error") + propc.cost(theta.sum() * seen.sum().expand(BATCH), "aside")


def test_what_depends_on_the_site_is_copied_and_nothing_else() -> None:
    graph = graph_of(encoded, {"z": "local", "y": "rp"})
    found = copies(graph)
    assert {name: node.copy_of for name, node in found.items()} == {
        "y.in@z": "y.in",
        "y@z": "y",
        "error.in@z": "error.in",
    }
    assert graph["y.in"].operations == ["square", "cos", "mul", "sum"]  # type: ignore[attr-defined]
    assert found["y.in@z"].operations == ["mul", "sum"]  # type: ignore[attr-defined]
    assert [ref.node for ref in found["y.in@z"].inputs] == ["z", "y.in"]  # the weight is the original's
    assert [node.name for node in graph.of(CompareAlternatives)] == ["error.compare@z"]


def test_copies_stand_in_the_plate_of_alternatives() -> None:
    graph = graph_of(encoded, {"z": "local", "y": "rp"})
    site = graph["z"]
    assert isinstance(site, Site)
    assert graph.plates == (Plate("z", 2, "alternatives"),)
    assert (site.alternatives, site.plates, site.plate) == ("z", (), "")
    assert [graph.plates_of(ref) for ref in site.made] == [(), ("z",)]
    assert all(node.plates == ("z",) for node in copies(graph).values())
    assert all(not node.plates for node in graph if not node.copy_of)


def test_alternatives_are_outermost() -> None:
    """Also where plates begin before the site and behind it."""

    def program(theta: Tensor) -> Tensor:
        a = bits(theta, "a")
        z = bits(a * theta, "z")
        return bits(z * theta, "b").sum(-1) * a.sum(-1)

    graph = graph_of(program, {"a": propc.estimator("rloo", samples=3), "z": "local", "b": "enumerate"})
    assert [plate.name for plate in graph.plates] == ["a", "b", "z"]
    assert graph["b"].plates == ("b", "a")
    assert graph["b@z"].plates == graph.plates_of(graph["b@z"].made[1]) == ("z", "b", "a")
    assert graph["cost/b@z"].plates == ("z", "a")
    assert graph["cost/b.compare@z"].plates == ("a",)
    assert [(r.source, r.targets[0].site) for r in graph.routes if r.kind == "alternatives"] == [
        ("cost/b.compare@z", "z")
    ]


def test_later_sites_are_drawn_anew_by_plain_rules() -> None:
    def program(theta: Tensor) -> Tensor:
        z = bits(theta)
        x = propc.sample(Normal(z * theta, 1.0), "x")
        k = bits(x, "k")
        return (bits(k + theta, "b") * x).sum(-1)

    graph = graph_of(program, {"z": "local", "x": "tp", "k": "enumerate", "b": "local"})
    rules = {node.name: type(node.rule) for node in graph.sites if node.copy_of}
    assert rules == {"x@z": Plain, "k@z": EnumerateRule, "b@z": Plain}
    assert not any(site.alternatives for site in graph.sites if site.copy_of)
    assert graph.schedule.reverse == ("b", "k", "x", "z")


def test_equal_copies_share_their_code() -> None:
    def program(theta: Tensor) -> Tensor:
        return torch.sin(bits(theta).sum(-1))

    graph = graph_of(program)
    first, second = graph.of(Segment)[1:3]
    assert (first.name, second.name) == ("cost.in", "cost.in@z")
    assert first.stage is second.stage


def test_names_that_are_taken() -> None:
    def program(theta: Tensor) -> Tensor:
        z = bits(theta)
        other = propc.sample(Normal(theta.sum(), 1.0), "y@z", estimator="rp")
        return propc.sample(Normal(z.sum(-1), 1.0), "y", estimator="rp") * other

    graph = graph_of(program, {"z": "local", "*": "rp"})
    assert graph["y@z#2"].copy_of == "y"
    assert graph["y@z"].copy_of == ""


def test_nothing_is_explored_where_no_gradient_leaves_the_site() -> None:
    def program(theta: Tensor) -> Tensor:
        x = bits(theta, "x")
        return bits(x, "z").sum(-1) + theta.sum()

    graph = graph_of(program, {"x": "lr", "z": "local"})
    assert isinstance(graph["z"], Site)
    assert isinstance(graph["z"].rule, Plain)
    assert graph.plates == ()
    assert ExploreAlternatives().apply(graph) is graph


def test_nothing_is_explored_without_gradients() -> None:
    compiled = propc.compile(lambda theta: bits(theta).sum(-1), estimator="local")
    assert compiled.graph(THETA).plates == ()
    with torch.no_grad():
        assert compiled.graph(param()).plates == ()


def test_chunks() -> None:
    def program(theta: Tensor) -> Tensor:
        return torch.sin(bits(theta).sum(-1))

    assert graph_of(program, chunk=2).plates == (Plate("z", 2, "alternatives", chunk=2),)
    assert graph_of(program, local(chunk=1), chunk=2).plates == (Plate("z", 2, "alternatives", chunk=1),)
    torch.testing.assert_close(gradient(program, local(chunk=1)), gradient(program))


def test_broken_comparisons_are_found() -> None:
    graph = graph_of(encoded, {"z": "local", "y": "rp"})
    with pytest.raises(GraphError, match=r"'error.compare@z' \(.*\) has no route to the site with alternatives 'z'"):
        replace(graph, routes=()).verify()
    (node,) = graph.of(CompareAlternatives)
    alone = replace(node, inputs=(node.inputs[0], node.inputs[0]))
    with pytest.raises(GraphError, match=r"reads no cost of alternatives in the plate 'z'"):
        graph.with_nodes(alone).verify()


# -- gradients ----------------------------------------------------------------------------


def _cost(z: Tensor) -> Tensor:
    return torch.sin(z @ torch.tensor([1.0, 2.5], dtype=z.dtype)) * (1 + z[..., 0])


def by_hand(probs: Tensor, z: Tensor, f: Callable[[Tensor], Tensor] = _cost) -> Tensor:
    """Σ_j π_j(flipped) · [f(flipped) − f(z)], coordinate by coordinate; its gradient is that of `local`."""
    total = torch.zeros((), dtype=probs.dtype)
    for j in range(z.shape[-1]):
        flipped = z.clone()
        flipped[..., j] = 1 - z[..., j]
        p = torch.where(flipped[..., j] == 1, probs[..., j], 1 - probs[..., j])
        total = total + (p * (f(flipped) - f(z)).detach()).sum()
    return total


def test_all_at_once_equals_a_loop() -> None:
    torch.manual_seed(0)
    z = Bernoulli(logits=THETA.expand(BATCH, 2)).sample()
    theta = param()
    (wanted,) = torch.autograd.grad(by_hand(torch.sigmoid(theta.expand(BATCH, 2)), z), theta)
    torch.testing.assert_close(gradient(lambda theta: _cost(bits(theta))), wanted)


def test_in_a_plate_it_equals_a_loop() -> None:
    """Of three samples of a site before it."""

    def program(theta: Tensor) -> Tensor:
        a = propc.sample(Normal(theta.detach().expand(BATCH, 2), 1.0), "a")
        return _cost(bits(a * theta)) * a[:, 0]

    torch.manual_seed(0)
    a = Normal(THETA.expand(BATCH, 2), 1.0).sample((3,))
    theta = param()
    probs = torch.sigmoid(a * theta)
    z = torch.bernoulli(probs.detach())
    (wanted,) = torch.autograd.grad(by_hand(probs, z, lambda z: _cost(z) * a[..., 0]) / 3, theta)
    found = gradient(program, {"a": propc.estimator("lr", samples=3), "z": "local"})
    torch.testing.assert_close(found, wanted)


def test_classes_and_events_equal_a_loop() -> None:
    """Two one-hot vectors of three classes in an event, on a site that all rows share."""
    logits = torch.tensor([[0.3, -0.2, 0.5], [1.0, 0.1, -0.7]], dtype=torch.float64)
    data = torch.linspace(-1, 1, 4, dtype=torch.float64)

    def f(z: Tensor) -> Tensor:
        return torch.cos(data * z[0].argmax(-1) + z[1].argmax(-1))

    def program(theta: Tensor) -> Tensor:
        return f(propc.sample(Independent(OneHotCategorical(logits=theta), 1), "z"))

    theta = logits.clone().requires_grad_()
    torch.manual_seed(0)
    (found,) = torch.autograd.grad(propc.compile(program, estimator="local")(theta).sum(), theta)
    torch.manual_seed(0)
    z, other = OneHotCategorical(logits=logits).sample(), logits.clone().requires_grad_()
    total = torch.zeros((), dtype=torch.float64)
    for place in range(2):
        for k in range(3):
            changed = z.clone()
            changed[place] = torch.eye(3, dtype=torch.float64)[k]
            total = total + other.softmax(-1)[place, k] * (f(changed) - f(z)).sum()
    torch.testing.assert_close(found, torch.autograd.grad(total, other)[0])


def test_parameters_behind_the_site_hear_of_the_draw_alone() -> None:
    def program(theta: Tensor, weight: Tensor) -> Tensor:
        return torch.exp(bits(theta) @ weight)

    theta, weight = param(), torch.tensor([0.7, -1.1], dtype=torch.float64, requires_grad=True)
    torch.manual_seed(0)
    costs = propc.compile(program, estimator="local")(theta, weight)
    found = torch.autograd.grad(costs.sum(), weight)[0]
    torch.manual_seed(0)
    z = Bernoulli(logits=THETA.expand(BATCH, 2)).sample()
    torch.testing.assert_close(costs, torch.exp(z @ weight))
    torch.testing.assert_close(found, torch.autograd.grad(torch.exp(z @ weight).sum(), weight)[0])


def test_weights_of_the_user_reach_the_site() -> None:
    compiled = propc.compile(lambda theta: (_cost(bits(theta)), bits(theta, "w").sum(-1)), estimator="local")

    def of(weights: tuple[float, float]) -> Tensor:
        theta = param()
        torch.manual_seed(0)
        costs = compiled(theta)
        return torch.autograd.grad(sum(w * c.sum() for w, c in zip(weights, costs)), theta)[0]

    torch.testing.assert_close(of((2.0, -0.5)), 2 * of((1.0, 0.0)) - 0.5 * of((0.0, 1.0)))


def test_copies_leave_nothing_for_the_reverse_pass() -> None:
    """All that autograd keeps is of the size of the draw, not of the alternatives."""

    def program(theta: Tensor, weight: Tensor) -> Tensor:
        z = propc.sample(Bernoulli(logits=theta.expand(50, 20)), "z")
        return torch.sin(torch.tanh(z @ weight) @ weight.mT).sum(-1)

    theta = torch.zeros(20, dtype=torch.float64, requires_grad=True)
    weight = torch.ones(20, 20, dtype=torch.float64, requires_grad=True)
    kept: list[int] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    compiled = propc.compile(program, estimator="local")
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        compiled(theta, weight)
    assert kept
    assert max(kept) == 50 * 20  # alternatives would be 20 times as many


class Tell(propc.Propagator):
    """Sends more than cotangents."""

    sends = (propc.Field("size", "list"),)

    def backward(self, node: propc.NodeView, message: propc.Message) -> propc.Message:
        return message.replace(size=message.grad.norm()) if "grad" in message else message


class Twice(SitePropagator):
    """A rule of the user's own: draws, and takes messages."""

    @property
    def baselines(self) -> tuple[propc.propagators.Baseline, ...]:
        return (propc.estimators.NoBaseline(),)

    def draw(self, site: SiteContext, phi: Sequence[Tensor], tangents: Sequence[Tensor | None]) -> Draw:
        dist = site.build(phi)
        with torch.no_grad():
            value = dist.sample()
        return Draw(value, (token(row_log_prob(dist, value, site.lead)),))


def test_rules_of_the_users_draw_the_copies_themselves() -> None:
    def program(theta: Tensor) -> Tensor:
        z = bits(theta)
        return propc.sample(Normal(z * theta, 1.0), "x").square().sum(-1)

    own = {"z": "local", "x": Twice()}
    copy = graph_of(program, own)["x@z"]
    assert isinstance(copy, Site)
    assert isinstance(copy.rule, Twice)
    plain = {"z": "local", "x": propc.estimator("lr", baseline=None)}
    torch.testing.assert_close(gradient(program, own), gradient(program, plain))


@pytest.mark.parametrize("behind", ["local", "rp", "enumerate", "mvd"])
def test_the_same_by_messages(behind: str) -> None:
    def program(theta: Tensor, rule: Any) -> Tensor:
        h = propc.node(torch.tanh(theta), "h", propagator=rule)
        z = bits(h)
        if behind in ("rp", "mvd"):
            return propc.sample(Normal(z * h, 1.0), "x").square().sum(-1)
        return bits(z * h, "x").sum(-1) * z[:, 0]

    found = []
    for rule in (None, Tell()):
        theta = param()
        compiled = propc.compile(program, estimator={"z": "local", "x": behind})
        assert compiled.graph(theta, rule).general == (rule is not None)
        torch.manual_seed(0)
        found.append(torch.autograd.grad(compiled(theta, rule).sum(), theta)[0])
    torch.testing.assert_close(*found)


def test_rows_that_mix_are_found() -> None:
    def program(theta: Tensor) -> Tensor:
        z = bits(theta)
        return (z - z.cumsum(0)).sum(-1)

    with pytest.raises(GraphError, match=r"cost 'cost'.*mixes samples of the batch"):
        gradient(program)


# -- what is refused ----------------------------------------------------------------------


def test_first_derivatives_only() -> None:
    theta = param()
    cost = propc.compile(lambda theta: _cost(bits(theta)), estimator="local")(theta).sum()
    with pytest.raises(EstimatorError, match=r"site 'z' \(.*estimator 'local' runs alternatives without gradient.*"):
        torch.autograd.grad(cost, theta, create_graph=True)


LAWS: dict[str, tuple[str, Callable[[Tensor], Any], str]] = {
    "continuous": ("local", lambda p: Normal(p, 1.0), r"'local' needs independent elements.*Normal.*cannot.*'mvd'"),
    "counts": ("local", lambda p: Poisson(p.exp()), r"'local' needs independent elements.*Poisson"),
    "binomial": ("local", lambda p: Binomial(3, logits=p), r"'local' needs independent elements.*Binomial"),
    "joint": (
        "mvd",
        lambda p: MultivariateNormal(p, torch.eye(2, dtype=p.dtype)),
        r"'mvd' has no measure-valued derivative of MultivariateNormal.*knows Normal, Gamma, Exponential, Poisson",
    ),
    "concentration": (
        "mvd",
        lambda p: Gamma(p.exp(), 1.0),
        r"'mvd' has no derivative of Gamma in 'concentration', which wants a gradient\. It knows rate",
    ),
}


@pytest.mark.parametrize("case", LAWS)
def test_distributions_without_a_rule(case: str) -> None:
    estimator, law, words = LAWS[case]
    with pytest.raises(EstimatorError, match=rf"site 'z' \(test_explore_alternatives.py:\d+\): estimator {words}"):
        gradient(lambda theta: propc.sample(law(theta.expand(BATCH, 2)), "z").sum(-1), estimator)


def _in_place(theta: Tensor) -> Tensor:
    z, total = bits(theta), torch.zeros(BATCH, dtype=theta.dtype)
    total.view(-1).add_(z.sum(-1))
    return total.sin()


def _written_later(theta: Tensor) -> Tensor:
    z, total = bits(theta), torch.ones(BATCH, dtype=theta.dtype) * theta.sum()
    cost = (total * z.sum(-1)).sin()
    total.view(-1).add_(1)
    return cost * total.cos()


def _node(theta: Tensor) -> Tensor:
    return propc.node(bits(theta).sum(-1) * theta[0], "h", propagator="clip").square()


def _site(theta: Tensor) -> Tensor:
    return propc.sample(Normal(bits(theta).sum(-1) * theta[0], 1.0), "x", estimator=Tell()).square()


def _one_number(theta: Tensor) -> tuple[Tensor, Tensor]:
    z = bits(theta)
    return z.sum(-1), z.mean().square()


def _refitted(theta: Tensor) -> Tensor:
    x = propc.sample(Normal(bits(theta) + theta, 1.0), "x", estimator=propc.estimator("gs", at="x"))
    return x.square().sum(-1)


def _loss(theta: Tensor) -> Tensor:
    return propc.cost(bits(theta).sum(-1), "c", propagator="loss")


@pytest.mark.parametrize(
    ("program", "words"),
    [
        (_in_place, r"runs the program behind the site again, and there it writes into a tensor \(test_explore"),
        (_written_later, r"writes into a tensor.*Write x = x \+ y"),
        (_node, r"node 'h' \(.*\) behind the site has the propagator 'clip', which handles messages itself"),
        (_site, r"site 'x' \(.*\) behind the site has the propagator 'tell'"),
        (_loss, r"cost 'c' \(.*\) behind the site has the propagator 'loss'"),
        (_one_number, r"cost 'cost1' \(.*\) behind the site is one number for all 6 rows of the site"),
        (_refitted, r"resample 'x.resample' \(.*\) behind the site refits a Gaussian"),
    ],
)
def test_programs_that_cannot_be_explored(program: Any, words: str) -> None:
    compiled = propc.compile(program, estimator={"z": "local", "*": "lr"})
    place = r"site 'z' \(test_explore_alternatives.py:\d+\)"
    with pytest.raises(EstimatorError, match=rf"{place}: estimator 'local'.*{words}"):
        compiled(param())


def test_costs_that_are_not_finite() -> None:
    with pytest.raises(
        NonFiniteError, match=r"site 'z' .*costs of its alternatives are NaN or infinite \(cost.compare@z"
    ):
        gradient(lambda theta: torch.where(bits(theta).sum(-1) == 1, torch.inf, 0.0), seed=3)


@pytest.mark.parametrize("name", ["local", "mvd"])
def test_options(name: str) -> None:
    with pytest.raises(PropcValueError, match="noise='loud' is unknown"):
        propc.estimator(name, noise="loud")
    with pytest.raises(PropcValueError, match="chunk=0 must be a positive integer"):
        propc.estimator(name, chunk=0)
    with pytest.raises(PropcValueError, match="unknown option 'samples'"):
        propc.estimator(name, samples=3)


def test_a_large_categorical() -> None:
    """As many alternatives as there are other classes, one after the other where there is little memory."""

    def program(theta: Tensor) -> Tensor:
        logits = torch.arange(40.0, dtype=theta.dtype) * theta[0] / 10
        return (propc.sample(Categorical(logits=logits.expand(BATCH, 40)), "z").to(theta.dtype) * 0.1).sin()

    assert graph_of(program).plates == (Plate("z", 39, "alternatives"),)
    torch.testing.assert_close(gradient(program, chunk=5), gradient(program, "enumerate"))
