"""Gaussian shaping: where resample nodes stand, who reads them, who gets their messages, what is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Bernoulli, Normal

import propc
from propc.errors import EstimatorError, GraphError, PropcTypeError, PropcValueError, PropcWarning
from propc.ir import Ref, Resample, Segment
from propc.passes import GaussianShaping, Prune

BATCH = 6


def param() -> Tensor:
    return torch.tensor(0.5, requires_grad=True)


def rollout(theta: Tensor, steps: int = 3) -> Tensor:
    """A reward at every step."""
    x, total = torch.zeros(BATCH, 2), torch.zeros(BATCH)
    for t in range(steps):
        x = propc.sample(Normal(torch.sin(theta + x), 0.5), f"x{t}")
        total = total + x.square().sum(-1)
    return total


def terminal(theta: Tensor) -> Tensor:
    x = torch.zeros(BATCH, 2)
    for t in range(3):
        x = propc.sample(Normal(torch.sin(theta + x), 0.5), f"x{t}")
    return torch.cos(x).sum(-1)


def graph_of(fn: Callable[..., Any], *passes: Any, estimator: Any = "lr") -> propc.PropagationGraph:
    graph: propc.PropagationGraph = propc.compile(fn, estimator=estimator, passes=passes).graph(param())
    return graph


def routes(graph: propc.PropagationGraph) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for route in graph.routes:
        found.setdefault(route.source, []).extend(map(str, route.targets))
    return found


def reads(graph: propc.PropagationGraph, name: str) -> set[str]:
    """Sites, resample nodes and costs that a node's inputs depend on, through segments."""
    found, pending = set(), list(graph[name].inputs)
    while pending:
        ref = pending.pop()
        source = graph[ref.node]
        if isinstance(source, Segment):
            pending += [r for i, r in enumerate(source.inputs) if source.dependence[ref.port].any >> i & 1]
        elif source.name.startswith(("x", "y", "z", "cost")):
            found.add(source.name)
    return found


def gradient(fn: Callable[..., Any], *passes: Any, estimator: Any = "lr") -> Tensor:
    theta = param()
    return torch.autograd.grad(propc.compile(fn, estimator=estimator, passes=passes)(theta).mean(), theta)[0]


# ---- where ----------------------------------------------------------------------------


def test_golden(golden: Callable[[str, str], None]) -> None:
    graph = graph_of(rollout, estimator="gs")
    golden("shaping.txt", str(graph))
    golden("shaping.dot", graph.to_dot(fold=False))
    golden("shaping.explain.txt", str(propc.compile(rollout, estimator="gs").explain(param())))


def test_everything_behind_reads_the_draws() -> None:
    graph = graph_of(rollout, GaussianShaping(at="x1"))
    assert reads(graph, "x1.resample") == {"x1"}
    assert reads(graph, "x2") == {"x1.resample"}
    assert reads(graph, "cost.1") == {"x1.resample"}
    assert routes(graph) == {"cost.0": ["x0"], "x1.resample": ["x0", "x1"], "cost.2": ["x2"]}


def test_only_some_costs_read_the_draws() -> None:
    """A reward sees the Gaussian, the rollout goes on with the particles."""
    graph = graph_of(rollout, GaussianShaping(at="x1", costs="cost.1"))
    assert reads(graph, "x2") == {"x1"}
    assert reads(graph, "cost.1") == {"x1.resample"}
    assert routes(graph) == {"cost.0": ["x0"], "cost.2": ["x0", "x1", "x2"], "x1.resample": ["x0", "x1"]}


def test_by_default_before_every_cost() -> None:
    graph = graph_of(rollout, "gaussian-shaping")
    for t in range(3):
        assert reads(graph, f"cost.{t}") == {f"x{t}.resample"}
    assert reads(graph, "x2") == {"x1"}
    assert routes(graph) == {"x0.resample": ["x0"], "x1.resample": ["x0", "x1"], "x2.resample": ["x0", "x1", "x2"]}


def test_a_pattern_means_a_node_at_each() -> None:
    graph = graph_of(terminal, GaussianShaping(at="x*"))
    assert [n.name for n in graph.of(Resample)] == ["x0.resample", "x1.resample", "x2.resample"]
    assert routes(graph) == {f"x{t}.resample": [f"x{t}"] for t in range(3)}


def test_a_sequence_means_one_node() -> None:
    graph = graph_of(branches, GaussianShaping(at=["x", "y"]))
    (node,) = graph.of(Resample)
    assert node.inputs == (Ref("x"), Ref("y"))
    assert node.width == 2
    assert routes(graph) == {"y.resample": ["x", "y"]}


def branches(theta: Tensor) -> Tensor:
    x = propc.sample(Normal(theta.expand(BATCH), 1.0), "x")
    y = propc.sample(Normal(theta * x, 1.0), "y")
    return (x * y).cos()


def test_the_frontier_of_a_cost_is_fitted_jointly() -> None:
    (node,) = graph_of(branches, estimator="gs").of(Resample)
    assert node.inputs == (Ref("x"), Ref("y"))


def test_a_named_value() -> None:
    def program(theta: Tensor) -> Tensor:
        x = propc.sample(Normal(theta.expand(BATCH, 2), 1.0), "x")
        return propc.node(x.sum(-1), "y").cos()

    graph = graph_of(program, GaussianShaping(at="y"))
    assert reads(graph, "cost") == {"y.resample"}
    assert routes(graph) == {"y.resample": ["x"]}


def test_what_bypasses_the_node_is_sent_as_it_is() -> None:
    graph = graph_of(branches, GaussianShaping(at="y"))
    assert routes(graph) == {"cost": ["x"], "y.resample": ["x", "y"]}


def shared(theta: Tensor) -> tuple[Tensor, Tensor]:
    """Both costs need the same cosine, and the second a value that no shaping touches."""
    x = propc.sample(Normal(theta.expand(BATCH), 1.0), "x")
    scale = theta.exp()
    y = torch.cos(x)
    return y * scale, y.square() * x


def test_code_that_both_need_is_sliced() -> None:
    graph = graph_of(shared, GaussianShaping(at="x", costs="cost0"))
    assert reads(graph, "cost0") == {"x.resample"}
    assert reads(graph, "cost1") == {"x"}
    assert routes(graph) == {"x.resample": ["x"], "cost1": ["x"]}
    names = [type(n).__name__ for n in graph]
    assert names.index("Resample") > names.index("Site")


@pytest.mark.parametrize("costs", ["cost0", "cost1"])
def test_a_slice_computes_the_same(costs: str) -> None:
    """The cost that is left alone has the value that it had; the other is that of the draws."""
    whole, sliced = (
        propc.compile(shared, estimator="lr", passes=passes) for passes in ([], [GaussianShaping(at="x", costs=costs)])
    )
    torch.manual_seed(1)
    plain = whole(param())
    torch.manual_seed(1)
    shaped = sliced(param())
    same = 1 if costs == "cost0" else 0
    torch.testing.assert_close(plain[same], shaped[same])
    torch.manual_seed(1)
    x = 0.5 + torch.randn(BATCH)
    drawn = x.mean() + torch.sqrt(x.var() + 1e-6) * torch.randn(BATCH, 1).squeeze(1)
    expected = (torch.cos(drawn) * torch.tensor(0.5).exp(), torch.cos(drawn).square() * drawn)
    torch.testing.assert_close(shaped[1 - same], expected[1 - same])


def test_nothing_is_computed_for_nobody() -> None:
    graph = graph_of(rollout, estimator="gs")
    plain = graph_of(rollout, estimator="lr")

    def steps(g: propc.PropagationGraph) -> int:
        return sum(len(s.body) for s in g.of(Segment))

    assert steps(graph) == steps(plain)


# ---- who takes part -------------------------------------------------------------------


def test_sites_that_need_no_messages_get_none() -> None:
    graph = graph_of(terminal, GaussianShaping(at="x2"), estimator={"x1": "lr", "*": "rp"})
    assert routes(graph) == {"x2.resample": ["x1"]}
    assert routes(graph_of(terminal, GaussianShaping(at="x2"), estimator="rp")) == {}


def test_sites_are_those_that_may_take_messages() -> None:
    graph = graph_of(terminal, GaussianShaping(at="x2", sites=["x1", "x2"]), estimator={"x0": "rp", "*": "lr"})
    assert routes(graph) == {"x2.resample": ["x1", "x2"]}


def test_a_site_that_is_not_listed_but_needs_messages() -> None:
    words = r"site 'x0' \(.*\): its estimator 'lr' takes messages.*'x2.resample' are shaped.*to 'x1', 'x2' only"
    with pytest.raises(EstimatorError, match=words):
        graph_of(terminal, GaussianShaping(at="x2", sites="x[12]"))


def test_estimators_by_site() -> None:
    graph = graph_of(terminal, estimator={"x0": "gr", "x1": "gs", "x2": "gs-tp"})
    assert [n.name for n in graph.of(Resample)] == ["x2.resample"]
    assert [s.estimator for s in graph.sites] == ["gr", "gs", "gs-tp"]
    assert routes(graph) == {"x2.resample": ["x1", "x2"]}


def test_a_part_of_a_combination_brings_its_node() -> None:
    choice = propc.estimator("combine", estimators=("gs", "rp"))
    graph = graph_of(terminal, estimator=choice)
    assert routes(graph) == {"x2.resample": ["x0", "x1", "x2"]}
    torch.manual_seed(0)
    combined = gradient(terminal, estimator=choice)
    torch.manual_seed(0)
    torch.testing.assert_close(combined, gradient(terminal, estimator="gs-tp"))


def test_estimator_at_the_site() -> None:
    def program(theta: Tensor) -> Tensor:
        x = propc.sample(Normal(theta.expand(BATCH), 1.0), "x", estimator="gs")
        return torch.cos(x)

    assert routes(graph_of(program, estimator="rp")) == {"x.resample": ["x"]}


def test_estimator_as_a_function_sees_the_site_as_written() -> None:
    seen = []

    def choose(site: Any) -> str:
        seen.append((site.name, site.costs))
        return "gs" if "cost" in site.costs else "rp"

    assert routes(graph_of(terminal, estimator=choose)) == {"x2.resample": ["x0", "x1", "x2"]}
    assert ("x0", ("cost",)) in seen


def test_a_site_that_asked_for_the_plain_cost() -> None:
    with pytest.raises(EstimatorError, match=r"site 'x0'.*its estimator 'lr' takes messages"):
        graph_of(terminal, estimator={"x0": "lr", "*": "gs"})


def test_options_of_the_estimator() -> None:
    graph = graph_of(rollout, estimator=propc.estimator("gs", at=["x1"], costs=["cost.1", "cost.2"], shrinkage=0.2))
    (node,) = graph.of(Resample)
    assert (node.name, node.shrinkage, node.sites) == ("x1.resample", 0.2, ("x0", "x1", "x2"))
    assert "{Gaussian of 2 dimensions, shrinkage 0.2}" in str(graph)


def test_a_program_without_parameters_or_costs_is_left_alone() -> None:
    plain = propc.compile(terminal, estimator="gs").graph(torch.tensor(0.5))
    assert not plain.of(Resample)


# ---- downstream of the node -----------------------------------------------------------


def test_a_score_site_behind_the_node_sends_cotangents_to_it() -> None:
    """Prune must not take its φ for one that no parameter lies behind."""
    graph = graph_of(terminal, GaussianShaping(at="x0"))
    assert [s.estimator for s in graph.sites] == ["lr"] * 3
    assert gradient(terminal, GaussianShaping(at="x0")) != 0


def test_a_jump_behind_a_score_site_is_no_obstacle() -> None:
    def program(theta: Tensor) -> Tensor:
        x = propc.sample(Normal(theta.expand(BATCH), 1.0), "x")
        y = propc.sample(Normal(x, 1.0), "y")
        return (y > 0).to(theta.dtype)

    assert routes(graph_of(program, GaussianShaping(at="x"))) == {"x.resample": ["x"], "cost": ["y"]}
    with pytest.raises(EstimatorError, match=r"resample node 'y.resample' .*no differentiable path leads to 'cost'"):
        graph_of(program, GaussianShaping(at="y"))


@pytest.mark.parametrize("estimator", ["gs", "gs-tp", "gr"])
def test_a_cost_that_cannot_be_differentiated(estimator: str) -> None:
    """Also by default: no site is left with another estimator than it has chosen."""

    def jumps(theta: Tensor) -> Tensor:
        return (propc.sample(Normal(theta.expand(BATCH), 1.0), "x") > 0).to(theta.dtype)

    def black_box(theta: Tensor) -> Tensor:
        return propc.opaque(torch.square)(propc.sample(Normal(theta.expand(BATCH), 1.0), "x"))

    for program in (jumps, black_box):
        with pytest.raises(
            EstimatorError, match=r"resample node 'x.resample' .*no differentiable path leads to 'cost'"
        ):
            graph_of(program, estimator=estimator)


@pytest.mark.parametrize("estimator", ["gs", "gs-tp"])
def test_a_scalar_cost(estimator: str) -> None:
    def program(theta: Tensor) -> Tensor:
        return torch.cos(propc.sample(Normal(theta.expand(BATCH), 1.0), "x")).mean()

    with pytest.raises(EstimatorError, match=f"site 'x' .*estimator '{estimator}' needs one cost for each sample"):
        graph_of(program, estimator=estimator)
    assert gradient(program, estimator="gr") != 0


def test_the_estimator_is_named_in_refusals() -> None:
    def program(theta: Tensor) -> Tensor:
        return torch.cos(propc.sample(Bernoulli(logits=theta.expand(BATCH)), "x"))

    for estimator in ("gr", "gs-tp"):
        with pytest.raises(EstimatorError, match=r"site 'x' .*Bernoulli.* has no rsample"):
            graph_of(program, estimator=estimator)


def test_a_jump_on_the_side_is_a_warning() -> None:
    def program(theta: Tensor) -> Tensor:
        x = propc.sample(Normal(theta.expand(BATCH), 1.0), "x")
        return torch.cos(x) + torch.cos(x) * (x > 0).to(theta.dtype)

    with pytest.warns(PropcWarning, match=r"resample node 'x.resample'.*it also reaches 'cost.1' through a comparison"):
        graph_of(program, GaussianShaping(at="x"))


def test_rows_may_mix_at_the_node_only() -> None:
    assert torch.isfinite(gradient(rollout, estimator="gs"))

    def mixes(theta: Tensor) -> Tensor:
        x = propc.sample(Normal(theta.expand(BATCH), 1.0), "x")
        y = propc.node(x - x.mean(), "y")
        return torch.cos(y)

    with pytest.raises(GraphError, match=r"resample 'y.resample'.*mixes samples"):
        gradient(mixes, GaussianShaping(at="y"))


def test_a_returned_draw_of_the_node_has_a_gradient() -> None:
    """What is computed from it outside reaches the sites before it: no message is missing."""

    def program(theta: Tensor) -> tuple[Tensor, Tensor]:
        x = propc.sample(Normal(theta.expand(BATCH, 2), 1.0), "x")
        return x, torch.cos(x).sum(-1)

    theta = param()
    drawn, _ = propc.compile(program, estimator="lr", passes=[GaussianShaping(at="x")])(theta)
    assert torch.autograd.grad(drawn.square().mean(), theta)[0] != 0


def test_a_node_that_nobody_reads_goes() -> None:
    graph = graph_of(terminal, GaussianShaping(at="x2"))
    unread = graph.with_nodes(replace(graph["cost.in"], inputs=(Ref("x2"),)))
    assert not Prune().apply(replace(unread, schedule=type(graph.schedule)())).of(Resample)


def test_verify_knows_the_node() -> None:
    graph = graph_of(terminal, GaussianShaping(at="x2"))
    node = graph.of(Resample)[0]
    with pytest.raises(GraphError, match="does not keep the types"):
        graph.with_nodes(replace(node, outputs=(replace(node.outputs[0], shape=(1,)),))).verify()
    wrong = replace(graph.routes[0], source="x2")
    with pytest.raises(GraphError, match="does not begin at a cost or resample node"):
        replace(graph, routes=(wrong,)).verify()


# ---- bad input ------------------------------------------------------------------------


def test_a_misspelt_place() -> None:
    with pytest.raises(
        PropcValueError, match=r"at='x9' of gaussian-shaping matches no site or propc.node.*Known: 'x0'"
    ):
        graph_of(terminal, GaussianShaping(at="x9"))


def test_a_misspelt_site() -> None:
    with pytest.raises(PropcValueError, match=r"sites='y\*' .* matches no site of 'terminal'.*Known: 'x0', 'x1', 'x2'"):
        graph_of(terminal, GaussianShaping(at="x1", sites="y*"))
    with pytest.raises(PropcValueError, match=r"sites='x2' .*none of them lies before.*Known: 'x0', 'x1'"):
        graph_of(terminal, GaussianShaping(at="x1", sites="x2"))


def test_a_misspelt_cost() -> None:
    with pytest.raises(PropcValueError, match=r"costs='cost.7' .* matches no cost.*'cost.0', 'cost.1', 'cost.2'"):
        graph_of(rollout, GaussianShaping(at="x1", costs="cost.7"))


def test_a_cost_that_does_not_depend_on_it() -> None:
    with pytest.raises(PropcValueError, match=r"site 'x1' .*no cost of \['cost.0'\] depends on it"):
        graph_of(rollout, GaussianShaping(at="x1", costs="cost.0"))


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"at": 3}, PropcTypeError, "at=3 must be a name or a sequence of names"),
        ({"at": []}, PropcTypeError, "at="),
        ({"shrinkage": 0}, PropcValueError, r"shrinkage=0 must be in \(0, 1\]"),
        ({"shrinkage": 1.5}, PropcValueError, "shrinkage=1.5"),
        ({"jitter": -1.0}, PropcValueError, "jitter=-1.0 must be a number, not negative"),
        ({"jitter": float("nan")}, PropcValueError, "jitter=nan"),
    ],
)
def test_options(options: dict[str, Any], error: type[Exception], words: str) -> None:
    for make in (GaussianShaping, lambda **o: propc.estimator("gs", **o)):
        with pytest.raises(error, match=words):
            make(**options)


def wide(theta: Tensor, width: int = BATCH) -> Tensor:
    return torch.cos(propc.sample(Normal(theta.expand(BATCH, width), 1.0), "x")).sum(-1)


@pytest.mark.parametrize("width", [BATCH, BATCH + 2])
def test_fewer_rows_than_dimensions(width: int) -> None:
    def program(theta: Tensor) -> Tensor:
        return wide(theta, width)

    with pytest.raises(EstimatorError, match=rf"site 'x' .*6 rows cannot give a covariance of {width} dimensions"):
        graph_of(program, estimator="gs")
    assert torch.isfinite(gradient(program, estimator=propc.estimator("gs", shrinkage=0.1)))
    assert torch.isfinite(gradient(lambda theta: wide(theta, BATCH - 1), estimator="gs"))


def test_a_discrete_value() -> None:
    def program(theta: Tensor) -> Tensor:
        x = propc.sample(Bernoulli(logits=theta.expand(BATCH)), "x")
        y = propc.sample(Normal(x.to(torch.float32), 1.0), "y")
        return torch.cos(y).to(theta.dtype) * x

    with pytest.raises(EstimatorError, match="fitted to floating point values of one type"):
        graph_of(program, estimator="gs")


def test_a_value_without_the_batch() -> None:
    def program(theta: Tensor) -> Tensor:
        z = propc.sample(Normal(theta, 1.0), "z")
        return torch.cos(propc.sample(Normal(z.expand(BATCH), 1.0), "x"))

    with pytest.raises(EstimatorError, match=r"site 'z' .*a row for each of the 6 samples; this one is float64\[\]"):
        graph_of(program, GaussianShaping(at="z"), estimator="rp")


def test_a_site_that_leads_to_other_costs() -> None:
    """It would have to be drawn twice."""

    def program(theta: Tensor) -> tuple[Tensor, Tensor]:
        x = propc.sample(Normal(theta.expand(BATCH), 1.0), "x")
        y = propc.sample(Normal(x, 1.0), "y")
        return torch.cos(y), torch.sin(y)

    with pytest.raises(GraphError, match=r"site 'y' .*lies between .* leads to other costs"):
        graph_of(program, GaussianShaping(at="x", costs="cost0"))


def test_a_site_between_jointly_fitted_ones() -> None:
    def program(theta: Tensor) -> Tensor:
        x = propc.sample(Normal(theta.expand(BATCH), 1.0), "x")
        y = propc.sample(Normal(x, 1.0), "y")
        z = propc.sample(Normal(theta + x, 1.0), "z")
        return torch.cos(x * y * z)

    with pytest.raises(GraphError, match=r"site 'y' .*is reached before they are all there"):
        graph_of(program, GaussianShaping(at=["x", "z"]))


def test_a_node_with_a_propagator_that_leads_to_other_costs() -> None:
    """Its messages would come from two values."""

    def program(theta: Tensor, rule: str | None) -> tuple[Tensor, Tensor]:
        x = propc.sample(Normal(theta.expand(BATCH), 1.0), "x")
        y = propc.node(2 * x, "y", propagator=rule)
        return torch.cos(y), torch.sin(y)

    compiled = propc.compile(program, estimator="lr", passes=[GaussianShaping(at="x", costs="cost0")])
    assert routes(compiled.graph(param(), None)) == {"cost1": ["x"], "x.resample": ["x"]}
    with pytest.raises(GraphError, match=r"node 'y' .*lies between .* leads to other costs"):
        compiled.graph(param(), "clip")


def test_a_draw_that_would_run_twice() -> None:
    def program(theta: Tensor) -> tuple[Tensor, Tensor]:
        x = propc.sample(Normal(theta.expand(BATCH), 1.0), "x")
        y = torch.dropout(x, 0.5, True)
        return torch.cos(y), torch.sin(y)

    with pytest.raises(
        GraphError, match=r"resample node 'x.resample' \(.*\): .*draws random numbers.*cannot run twice"
    ):
        graph_of(program, GaussianShaping(at="x", costs="cost0"))
    assert graph_of(program, GaussianShaping(at="x")).of(Resample)
