"""Graphs that a pass broke: the error names the pass, the node and what is wrong."""

from __future__ import annotations

from dataclasses import replace

import pytest
from mistakes import normal, refused, run
from torch import Tensor
from zoo import leaf

import propc
from propc.ir import Route, Token

pytestmark = pytest.mark.usefixtures("nothing_is_lost")


def test_a_graph_whose_routes_have_no_end() -> None:
    def program(theta: Tensor) -> tuple[Tensor, Tensor]:
        x = normal(theta, "first")
        return x, normal(theta, "second")

    graph = propc.compile(program, estimator="lr").graph(leaf())
    (route, *_) = graph.routes
    for changed, word in (
        (replace(route, targets=()), "has no end"),
        (replace(route, targets=(Token("nowhere"),)), "'nowhere'"),
        (replace(route, targets=(Token("second"),)), "influence"),
        (replace(route, targets=route.targets * 2), "twice"),
        (Route("theta", route.targets, route.baseline), "'theta'"),
    ):
        refused(propc.GraphError, replace(graph, routes=(changed,)).verify, word)


def test_a_broken_pass_is_named() -> None:
    class Broken(propc.passes.Pass):
        name = "broken"

        def apply(self, graph: propc.PropagationGraph) -> propc.PropagationGraph:
            return graph.without("output")

    error = refused(propc.GraphError, run(normal, passes=[Broken()]), "no output")
    assert any("'broken'" in note for note in getattr(error, "__notes__", ["'broken'"]))
