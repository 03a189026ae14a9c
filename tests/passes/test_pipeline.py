"""The pipeline: users' passes, where they run, what is refused, what is printed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from surrogate import Plain, gradients, seeded, surrogate
from torch import Tensor
from torch.distributions import Normal
from zoo import leaf

import propc
from propc.compiler.options import Options
from propc.errors import GraphError
from propc.ir import Ref, Route, Token
from propc.passes import Pass, Pipeline, Prune, Schedule, SplitCosts
from propc.passes.pipeline import _TABLE, make_pass
from propc.propagators import LikelihoodRatioRule, PathwiseRule

BATCH = 5
DEFAULT = list(Options().pipeline().names)  # their order stands in docs/architecture.md, whose tests hold it


def sine_map(theta: Tensor, sample: Any = propc.sample, between: Callable[[Tensor], Tensor] = lambda x: x) -> Tensor:
    x = torch.zeros(BATCH)
    for t in range(5):
        x = sample(Normal(torch.sin(theta + x), 0.5), f"x{t}")
        x = between(x) if t == 2 else x
    return x.square()


@dataclass(frozen=True)
class ForceLR(Pass):
    """Score function on every site more than `steps` from the end."""

    name = "force-lr"
    steps: int = 2

    def apply(self, graph: propc.PropagationGraph) -> propc.PropagationGraph:
        for site in graph.sites[: -self.steps]:
            graph = graph.with_estimator(site.name, "lr")
        return graph


@dataclass(frozen=True)
class Squash(Pass):
    """Insert a node behind a site."""

    name = "squash"
    at: str = "x2"

    def apply(self, graph: propc.PropagationGraph) -> propc.PropagationGraph:
        return graph.insert_after(self.at, torch.tanh, label=f"squash.{self.at}")


@dataclass(frozen=True)
class Draw(Pass):
    """Keep a picture of the graph; change nothing."""

    name = "draw"
    after = "schedule"
    path: str = "graph.dot"

    def apply(self, graph: propc.PropagationGraph) -> propc.PropagationGraph:
        Path(self.path).write_text(graph.to_dot(), encoding="utf-8")
        return graph


def test_force_lr() -> None:
    theta = leaf(0.5)
    compiled = propc.compile(sine_map, estimator="rp", passes=[ForceLR(steps=3)])
    kinds = [type(s.rule) for s in compiled.graph(theta).sites]
    assert kinds == [LikelihoodRatioRule] * 2 + [PathwiseRule] * 3
    value = seeded(compiled, theta)
    plain = Plain(pathwise=["x2", "x3", "x4"])
    expected = surrogate([(seeded(sine_map, theta, plain), ["x0", "x1"])], plain.scores)
    torch.testing.assert_close(gradients(value.sum(), [theta]), gradients(expected.sum(), [theta]))


@pytest.mark.parametrize("estimator", ["rp", "lr", "tp"])
def test_inserted_node(estimator: str) -> None:
    """What is inserted is part of the program: values and gradients are those of a program that has it."""
    theta = leaf(0.5)
    inserted = propc.compile(sine_map, estimator=estimator, passes=[Squash])
    written = propc.compile(lambda theta: sine_map(theta, between=torch.tanh), estimator=estimator)
    value, expected = seeded(inserted, theta), seeded(written, theta)
    assert torch.equal(value, expected)
    torch.testing.assert_close(gradients(value.sum(), [theta]), gradients(expected.sum(), [theta]))
    graph = inserted.graph(theta)
    assert graph.consumers(Ref("x2")) == ("squash.x2.in",)
    assert graph.consumers(Ref("squash.x2")) == ("x3.in",)


def test_inserting_is_checked() -> None:
    graph = propc.compile(sine_map).graph(leaf(0.5))
    with pytest.raises(GraphError, match="'x1' is taken"):
        graph.insert_after("x2", torch.tanh, label="x1")
    with pytest.raises(propc.PropcError, match=r"no node 'x9'.*'x0'"):
        graph.insert_after("x9", torch.tanh, label="new")


JUMPS = [torch.round, lambda x: x.sign() * x.detach(), lambda x: (x > 0).to(x.dtype), torch.Tensor.detach]


@pytest.mark.parametrize("fn", JUMPS)
def test_inserted_jump(fn: Callable[[Tensor], Tensor]) -> None:
    """Whether a gradient passes an inserted function is found out, as in a program that has it."""
    theta = leaf(0.5)
    graph = propc.compile(sine_map).graph(theta).insert_after("x2", fn, label="jump")
    reach = graph.influence.values[Ref("jump")]
    assert (reach.smooth, reach.parents, reach.leaves) == (0, 0, 0)
    assert graph.influence.named(reach.rough) == graph.influence.named(reach.any) == ("x0", "x1", "x2")

    class Jump(Pass):
        """Insert it before estimators are chosen."""

        name = "jump"

        def apply(self, graph: propc.PropagationGraph) -> propc.PropagationGraph:
            return graph.insert_after("x2", fn, label="jump")

    with pytest.raises(propc.PropcError, match=r"site 'x0'.*differentiable path"):
        propc.compile(sine_map, estimator="rp", passes=[Jump]).graph(theta)
    inserted = propc.compile(sine_map, passes=[Jump])
    written = propc.compile(lambda theta: sine_map(theta, between=fn))
    rules = [type(s.rule) for s in inserted.graph(theta).sites]
    assert rules == [type(s.rule) for s in written.graph(theta).sites] == [LikelihoodRatioRule] * 3 + [PathwiseRule] * 2
    value, expected = seeded(inserted, theta), seeded(written, theta)
    assert torch.equal(value, expected)
    torch.testing.assert_close(gradients(value.sum(), [theta]), gradients(expected.sum(), [theta]))


class StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.round()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


@pytest.mark.parametrize(
    "fn", [StraightThrough.apply, torch.relu_, lambda x: x, lambda x: x + (x.round() - x).detach()]
)
def test_inserted_path(fn: Callable[[Tensor], Tensor]) -> None:
    """Also where the derivative at zero is zero, or the user's own."""
    graph = propc.compile(sine_map).graph(leaf(0.5)).insert_after("x2", fn, label="path")
    reach = graph.influence.values[Ref("path")]
    assert reach.smooth == reach.any
    assert not reach.rough


def test_inserted_gradient_of_something_else() -> None:
    """What the function holds may want a gradient; none leads through it to the value."""
    held = leaf(0.5)
    graph = propc.compile(sine_map).graph(leaf(0.5)).insert_after("x2", lambda x: x.detach() * held, label="held")
    assert not graph.influence.values[Ref("held")].smooth


def test_inserting_tries_the_function() -> None:
    """Once, on zeros; random numbers stay as they were, and a write goes into a copy."""
    seen: list[Tensor] = []

    def noisy(x: Tensor) -> Tensor:
        seen.append(x.detach().clone())
        return x.add_(torch.randn(BATCH))

    graph = propc.compile(sine_map).graph(leaf(0.5))
    state = torch.get_rng_state()
    with torch.no_grad():
        changed = graph.insert_after("x2", noisy, label="noisy")
    assert torch.equal(state, torch.get_rng_state())
    assert [x.tolist() for x in seen] == [[0.0] * BATCH]
    assert changed.influence.values[Ref("noisy")].smooth


@pytest.mark.parametrize(
    ("fn", "words"),
    [
        (lambda x: x.sum(), r"node 'new' \(test_pipeline.py:\d+\).*of float64\[5\] it makes float64\[\]"),
        (lambda x: x > 0, r"node 'new'.*of float64\[5\] it makes bool\[5\]"),
        (lambda x: None, r"node 'new'.*makes NoneType"),
    ],
)
def test_inserted_function_keeps_shape_and_dtype(fn: Callable[[Tensor], Any], words: str) -> None:
    with pytest.raises(GraphError, match=words):
        propc.compile(sine_map).graph(leaf(0.5)).insert_after("x2", fn, label="new")


def test_inserted_in_place_of_a_returned_cost() -> None:
    """Behind the cost, the returned value is the node's."""
    theta = leaf(0.5)
    compiled = propc.compile(sine_map, estimator="rp", passes=[Squash(at="cost")])
    expected = torch.tanh(seeded(sine_map, theta))
    value = seeded(compiled, theta)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(gradients(value.sum(), [theta]), gradients(expected.sum(), [theta]))


def test_draw(tmp_path: Path) -> None:
    path = tmp_path / "g.dot"
    propc.compile(sine_map, passes=[Draw(path=str(path))]).graph(leaf(0.5))
    assert "digraph" in path.read_text(encoding="utf-8")


# Order.


def names(*extra: Any) -> list[str]:
    pipeline = propc.compile(sine_map, passes=extra).compiler.options.pipeline()
    return [p.name for p in pipeline.passes]


@dataclass(frozen=True)
class First(Squash):
    name = "first"
    after = "draw"


def test_order() -> None:
    assert names() == DEFAULT
    assert names(ForceLR, Squash) == [*DEFAULT[:2], "force-lr", "squash", *DEFAULT[2:]]
    assert names(Squash(), ForceLR()) == [*DEFAULT[:2], "squash", "force-lr", *DEFAULT[2:]]
    assert names(Draw, ForceLR, First) == [
        *DEFAULT[:2],
        "force-lr",
        *DEFAULT[2:],
        "draw",
        "first",
    ]


def test_after_something_unknown() -> None:
    with pytest.raises(propc.PropcError, match=r"'first' wants to run after 'draw'.*'prune'"):
        names(First)


def test_names_and_registration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(_TABLE, "mine", raising=False)
    monkeypatch.setattr(ForceLR, "name", "force-lr")  # put back afterwards
    registered = propc.passes.register("mine")(ForceLR)
    assert isinstance(make_pass("mine"), registered)
    assert set(DEFAULT) < set(propc.passes.known_passes())
    with pytest.raises(propc.PropcError, match="'mine' is taken"):
        propc.passes.register("mine")(Squash)
    monkeypatch.delitem(_TABLE, "mine")


@pytest.mark.parametrize(
    ("choice", "words"),
    [
        ("prun", r"unknown pass 'prun'.*Did you mean 'prune'"),
        (3, "got 3"),
        (dict, "a Pass class"),
        (repr, "repr in passes= got the pipeline and returned str"),
    ],
)
def test_not_a_pass(choice: Any, words: str) -> None:
    with pytest.raises(propc.PropcError, match=words):
        propc.compile(sine_map, passes=[choice])


def test_changes_of_the_pipeline() -> None:
    """In the order in which they are given; a pass goes where its `after` says in what there is then."""
    assert names(lambda p: p.without("prune", "find-influence")) == [
        name for name in DEFAULT if name not in ("prune", "find-influence")
    ]
    assert names(lambda p: p.before("split-costs", ForceLR)) == ["force-lr", *DEFAULT]
    assert names(lambda p: p.behind("schedule", ForceLR(), "prune")) == [
        *DEFAULT,
        "force-lr",
        "prune",
    ]
    assert names(lambda p: p.replaced("fuse", Squash)) == ["squash" if name == "fuse" else name for name in DEFAULT]
    assert names(Squash, lambda p: p.before("squash", Draw), ForceLR) == [
        *DEFAULT[:2],
        "force-lr",
        "draw",
        "squash",
        *DEFAULT[2:],
    ]


def test_without_split_costs() -> None:
    """A returned sum is then one cost, that all sites hear of."""

    def two(theta: Tensor) -> Tensor:
        x, y = (propc.sample(Normal(theta.expand(BATCH), 1.0), name) for name in "xy")
        return x.square() + y.square()

    theta = leaf(0.5)
    apart = propc.compile(two, estimator="lr")
    whole = propc.compile(two, estimator="lr", passes=[lambda p: p.without("split-costs")])
    assert [len(graph.costs) for graph in (apart.graph(theta), whole.graph(theta))] == [2, 1]
    torch.testing.assert_close(seeded(whole, theta), seeded(apart, theta))


def test_changes_that_cannot_be() -> None:
    with pytest.raises(propc.PropcValueError, match=r"no pass 'fuze'. Did you mean 'fuse'"):
        names(lambda p: p.without("fuze"))
    with pytest.raises(propc.PropcValueError, match=r"'fuse' cannot be left out.*replaced\('fuse', "):
        names(lambda p: p.without("fuse"))
    with pytest.raises(AttributeError, match="with_nodes") as caught:
        names(lambda graph: graph.with_nodes(*graph.sites))
    assert not hasattr(caught.value, "__notes__") or "is a propc.passes.Pass" in caught.value.__notes__[0]
    for single in (ForceLR(), ForceLR, "prune"):
        with pytest.raises(propc.PropcTypeError, match=r"takes a list of passes; got .*Write passes=\["):
            propc.compile(sine_map, passes=single)  # type: ignore[call-overload]


def test_graphs() -> None:
    """Before and after each pass; a pass does not change the graph that it was given."""
    graphs = propc.compile(sine_map, estimator="tp").graphs(leaf(0.5))
    assert [name for name, _ in graphs] == ["traced", *DEFAULT]
    assert all(site.rule is None for site in graphs[3][1].sites)
    assert all(site.rule is not None for site in graphs[4][1].sites)
    routed = 1 + DEFAULT.index("route-messages")
    assert not graphs[routed - 1][1].routes
    assert graphs[routed][1].routes
    assert Pipeline().run(graphs[0][1]) is graphs[0][1]


def test_passes_can_be_called_alone() -> None:
    graph = propc.compile(sine_map).graphs(leaf(0.5))[0][1]
    assert str(SplitCosts()(graph)) == str(Pipeline((SplitCosts(),)).run(graph))


# What is refused.


def broken(change: Callable[[propc.PropagationGraph], Any], last: str = "schedule") -> Any:
    """A pass that makes this change, behind another."""

    @dataclass(frozen=True)
    class Broken(Pass):
        name = "broken"
        after = last

        def apply(self, graph: propc.PropagationGraph) -> propc.PropagationGraph:
            return change(graph)  # type: ignore[no-any-return]

    return propc.compile(sine_map, estimator="lr", passes=[Broken])


BREAKS = {
    "dangling": (lambda g: g.without("x1.in"), r"site 'x1' .*reads %x1.in, which does not exist"),
    "no output": (lambda g: g.without("output"), "there is no output node"),
    "port": (
        lambda g: g.with_nodes(replace(g["x1"], inputs=(Ref("x1.in", 7), g["x1"].inputs[1]))),
        "reads %x1.in.7, but",
    ),
    "cycle": (
        lambda g: g.with_nodes(replace(g["x1.in"], inputs=(Ref("x3"), *g["x1.in"].inputs[1:]))),
        "in a cycle",
    ),
    "filed": (lambda g: replace(g, nodes={**g.nodes, "else": g["x1"]}), "'x1' is filed under 'else'"),
    "phi": (lambda g: g.with_nodes(replace(g["x1"], inputs=g["x1"].inputs[:1])), "1 inputs for 2 φ"),
    "no end": (lambda g: replace(g, routes=(replace(g.routes[0], targets=()),)), "has no end"),
    "twice": (
        lambda g: replace(g, routes=(replace(g.routes[0], targets=g.routes[0].targets * 2),)),
        "reaches 'x0' twice",
    ),
    "source": (
        lambda g: replace(g, routes=(replace(g.routes[0], source="x1"),)),
        "'x1' does not begin at a cost",
    ),
    "no site": (
        lambda g: replace(g, routes=(replace(g.routes[0], targets=(Token("cost"),)),)),
        "'cost' is no site that takes",
    ),
    "no token": (
        lambda g: replace(g, routes=(replace(g.routes[0], targets=(Token("x1", 1),)),)),
        "'x1/1' is no site that takes",
    ),
    "through": (lambda g: replace(g, routes=(replace(g.routes[0], through=(Token("gone"),)),)), "gone"),
    "join": (lambda g: replace(g, joins=(replace(g.joins[0], members=(Token("gone"),)),)), "gone"),
    "schedule": (
        lambda g: replace(g, schedule=replace(g.schedule, forward=g.schedule.forward[1:])),
        "exactly once",
    ),
}


@pytest.mark.parametrize(("change", "words"), BREAKS.values(), ids=BREAKS)
def test_a_broken_graph_is_refused(change: Any, words: str) -> None:
    with pytest.raises(GraphError, match=words) as caught:
        broken(change).graph(leaf(0.5))
    notes = "".join(getattr(caught.value, "__notes__", []))
    before = ", ".join(DEFAULT)
    assert f"(in pass 'broken'; run before it: {before})" in notes or not hasattr(caught.value, "add_note")


def test_a_route_to_a_site_that_does_not_influence_the_cost() -> None:
    def program(theta: Tensor) -> tuple[Tensor, Tensor]:
        a = propc.sample(Normal(theta.expand(BATCH), 1.0), "a")
        b = propc.sample(Normal(theta.expand(BATCH), 1.0), "b")
        return a.square(), b.square()

    graph = propc.compile(program, estimator="lr").graph(leaf(0.5))
    (first, _) = graph.routes
    with pytest.raises(GraphError, match="cost0 -> b ends at a site that does not influence the cost"):
        replace(graph, routes=(replace(first, targets=(Token("b"),)),)).verify()


def test_all_violations_at_once() -> None:
    graph = propc.compile(sine_map, estimator="lr").graph(leaf(0.5))
    bad = replace(graph.without("x1.in"), routes=(Route("x0", (), graph.routes[0].baseline),))
    with pytest.raises(GraphError) as caught:
        bad.verify()
    text = str(caught.value)
    assert "does not exist" in text
    assert "does not begin at a cost" in text
    assert "every node exactly once" in text


@pytest.mark.parametrize("returned", [None, "graph", 3])
def test_something_else_is_refused(returned: Any) -> None:
    with pytest.raises(propc.PropcError, match=f"the pass returned {type(returned).__name__}"):
        broken(lambda graph: returned).graph(leaf(0.5))


def test_a_failing_pass_keeps_its_own_error() -> None:
    def fail(graph: propc.PropagationGraph) -> propc.PropagationGraph:
        raise RuntimeError("mine")

    compiled = broken(fail, "prune")
    with pytest.raises(RuntimeError, match="mine") as caught:
        compiled.graph(leaf(0.5))
    notes = getattr(caught.value, "__notes__", [])
    assert not hasattr(caught.value, "add_note") or any("'broken'" in n and "prune" in n for n in notes)


# Debug output.


def test_debug_text(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PROPC_DEBUG", "1")
    propc.compile(sine_map).graph(leaf(0.5))
    text = capsys.readouterr().out
    assert [f"-- {i + 1:02d} {name} (" in text for i, name in enumerate(DEFAULT)] == [True] * len(DEFAULT)
    assert text.count("graph sine_map") == len(DEFAULT)
    assert not list(tmp_path.iterdir())


def test_debug_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PROPC_DEBUG", "2")
    propc.compile(sine_map).graph(leaf(0.5))
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"{i + 1:02d}-{n}.dot" for i, n in enumerate(DEFAULT)]
    assert "-- 01 split-costs" in capsys.readouterr().out


def test_no_output_by_default(capsys: pytest.CaptureFixture[str]) -> None:
    propc.compile(sine_map, passes=[Prune(), Schedule()]).graph(leaf(0.5))
    assert capsys.readouterr() == ("", "")
