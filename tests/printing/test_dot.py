"""The picture: golden DOT, complete when unfolded, small when folded, clear errors without Graphviz."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from pictures import needs_graphviz, parsed
from showcase import GRAPHS, autoencoder_graph, mixture_graph, rewards_graph, rollout_graph
from torch.distributions import Normal

import propc
from propc.errors import PropcValueError
from propc.ir import Cost, Expand, Input, Parameter, Site
from propc.printing.folding import boxes


@pytest.fixture
def no_graphviz(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))


def messages(edges, kind=""):
    dashed = [(tail, head, look) for tail, head, look in edges if look.get("style") == "dashed"]
    return [(tail, head) for tail, head, look in dashed if kind in look["tooltip"]]


@pytest.mark.parametrize("name", GRAPHS)
def test_golden(name, golden):
    golden(f"{name}.dot", GRAPHS[name]().to_dot())


@pytest.mark.parametrize("name", GRAPHS)
def test_unfolded_is_complete(name):
    graph = GRAPHS[name]()
    nodes, edges = parsed(graph, fold=False)
    assert nodes == [node.name for node in graph if node.number is None]
    ways = [(target.site, route.source, route.kind) for route in graph.routes for target in route.targets]
    sent = {(source, end) if kind in ("forward", "kept") else (end, source) for end, source, kind in ways}
    assert set(messages(edges)) == sent
    values = {(ref.node, node.name) for node in graph for ref in node.inputs if ref.node in nodes}
    drawn = {(tail, head) for tail, head, look in edges if look.get("style") is None}
    leaves = {leaf.name for leaf in (*graph.of(Input), *graph.of(Parameter))}
    assert values - drawn == {
        (ref.node, expand.name) for expand in graph.of(Expand) for ref in expand.inputs if ref.node in leaves
    }
    assert drawn <= values


@pytest.mark.parametrize("name", GRAPHS)
def test_messages_reach_their_sites_when_folded(name):
    """Through joins, every cost is connected to the same sites as its routes say."""
    graph = GRAPHS[name]()
    nodes, edges = parsed(graph)
    into: dict[str, set[str]] = {}
    for tail, head in messages(edges, "score"):
        into.setdefault(head, set()).add(tail)

    def sites(name):
        tails = into.get(name, ())
        return {site for tail in tails for site in (sites(tail) if tail.startswith("join") else [tail])}

    for cost in graph.costs:
        routes = [route for route in graph.routes if route.source == cost.name and route.kind == "score"]
        assert sites(cost.name) == {target.site for route in routes for target in route.targets}
    assert {node.name for node in graph if isinstance(node, (Site, Cost))} <= set(nodes)


def test_tangents_are_drawn():
    _, edges = parsed(rollout_graph(2, propc.estimator("tp", target="beta")))
    assert [(tail, head) for tail, head, look in edges if look.get("style") == "dotted"] == [
        ("x0.expand", "x0"),
        ("x1.expand", "x1"),
    ]


@pytest.mark.slow
@pytest.mark.parametrize("estimator", ["tp", "rp", propc.estimator("tp", target="beta")], ids=str)
def test_a_long_chain_is_as_small_as_a_short_one(estimator):
    short, long = (parsed(rollout_graph(horizon, estimator)) for horizon in (5, 100))
    assert len(long[0]) == len(short[0]) < 20
    assert len(long[1]) == len(short[1])
    assert "x1 … x98" in long[0]
    assert "⋯ 98 × the same ⋯" in rollout_graph(100, estimator).to_dot()


def test_three_repetitions_are_not_folded():
    assert not any(box.steps for box in boxes(rollout_graph(3), fold=True))
    assert any(box.steps for box in boxes(rollout_graph(4), fold=True))


@pytest.mark.slow
def test_a_step_of_several_sites_and_a_cost():
    graph = rewards_graph(60)
    nodes, edges = parsed(graph)
    assert len(nodes) < 45
    assert len(edges) < 70
    (run,) = (box for box in boxes(graph, fold=True) if box.steps)
    assert [(row[0].name, row[-1].name) for row in run.steps] == [("s2", "s57"), ("r2", "r57"), ("a3", "a58")]
    assert run.repeats == 56


def test_every_node_is_in_one_box():
    graph = rewards_graph(20)
    inside = [node.name for box in boxes(graph, fold=True) if not box.reader for node in box.nodes]
    leaves = {node.name for box in boxes(graph, fold=True) if box.reader for node in box.nodes}
    assert len(inside) == len(set(inside))
    assert leaves | set(inside) == {node.name for node in graph if node.number is None}


def test_the_estimator_ends_a_run():
    estimators = {"x5": "lr", "*": "rp"}
    nodes, _ = parsed(rollout_graph(12, estimators))
    assert "x5" in nodes
    assert [name for name in nodes if "…" in name and "reads" not in name] == ["x1 … x3", "x7 … x10"]


def test_before_passes():
    compiled = propc.compile(lambda m: propc.sample(Normal(m, 1.0), "x").square(), estimator="rp")
    for _, graph in compiled.graphs(torch.zeros(3, requires_grad=True)):
        assert "x" in parsed(graph)[0]


def test_strange_names():
    def program(m):
        a = propc.sample(Normal(m, 1.0), 'a "b": <c> & \\d')
        return propc.cost(a.square(), "loss:x{0}|y")

    graph = propc.compile(program, estimator="lr").graph(torch.zeros(3, requires_grad=True))
    nodes, edges = parsed(graph)
    assert "loss:x{0}|y" in nodes
    assert len(messages(edges)) == 1
    if shutil.which("dot"):
        assert "a &quot;b&quot;: &lt;c&gt; &amp; \\d" in graph._repr_svg_()


@needs_graphviz
@pytest.mark.parametrize(
    ("ending", "start"),
    [("svg", b"<?xml"), ("png", b"\x89PNG"), ("pdf", b"%PDF"), ("PNG", b"\x89PNG"), ("dot", b"digraph")],
)
def test_render(tmp_path, ending, start):
    path = str(tmp_path / f"graph.{ending}")
    assert mixture_graph().render(path) == path
    with open(path, "rb") as file:
        assert file.read(len(start)) == start


def test_unknown_ending(tmp_path):
    with pytest.raises(PropcValueError, match=r"its ending is 'swg'. Did you mean 'svg'"):
        autoencoder_graph().render(str(tmp_path / "graph.swg"))
    with pytest.raises(PropcValueError, match="Known: 'dot', 'pdf', 'png', 'svg'"):
        autoencoder_graph().render(str(tmp_path / "graph"))


def test_without_graphviz(no_graphviz, tmp_path):
    graph = autoencoder_graph()
    with pytest.raises(PropcValueError, match=r"'dot'.* was not found.* Install Graphviz"):
        graph.render(str(tmp_path / "graph.svg"))
    assert not (tmp_path / "graph.svg").exists()
    assert graph.render(str(tmp_path / "graph.dot"))
    assert graph._repr_svg_() is None
    text = graph._repr_html_()
    assert text.startswith("<pre>graph Autoencoder")
    assert "nll  -&gt;" in text or "site Independent" in text


def test_html_is_escaped(no_graphviz):
    compiled = propc.compile(lambda m: propc.sample(Normal(m, 1.0), "<b>x</b>").square(), estimator="rp")
    assert "<b>" not in compiled.graph(torch.zeros(3, requires_grad=True))._repr_html_()


@pytest.mark.skipif(not Path("/bin/sh").exists(), reason="no shell")
def test_failing_graphviz(monkeypatch, tmp_path):
    fake = tmp_path / "dot"
    fake.write_text("#!/bin/sh\necho broken plugin >&2\nexit 1\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(PropcValueError, match="'dot' failed"):
        autoencoder_graph().render(str(tmp_path / "graph.svg"))


@needs_graphviz
def test_notebooks():
    graph = mixture_graph()
    picture = graph._repr_svg_()
    assert picture.startswith("<svg")
    assert graph._repr_html_() == picture
    for node in graph.sites + graph.costs:
        assert f">{node.name}<" in picture


def test_names_of_operations_stay_whole():
    from torch.nn.functional import binary_cross_entropy_with_logits

    @propc.compile
    def loss(logits, labels):
        return binary_cross_entropy_with_logits(logits, labels, reduction="none")

    assert "binary_cross_entropy_with_logits" in loss.graph(torch.zeros(3), torch.ones(3)).to_dot()
