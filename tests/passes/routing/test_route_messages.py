"""Routes: from every cost to every site before it that takes messages, once each."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import zoo
from surrogate import Plain, gradients, seeded, surrogate
from torch import Tensor
from torch.distributions import Normal

import propc
from propc.ir import Token

BATCH = 5


def branches(theta: Tensor, sample: Any = propc.sample) -> tuple[Tensor, Tensor, Tensor]:
    """Two branches from one site; three costs."""
    x, y = zoo.linear_gaussian(theta, theta, BATCH, sample)
    z = sample(Normal(theta - x, 1.0), "z")
    return torch.cos(x), y.square(), torch.sin(z) * x


def graph_of(estimator: Any) -> propc.PropagationGraph:
    graph: propc.PropagationGraph = propc.compile(branches, estimator=estimator).graph(
        torch.tensor(0.5, requires_grad=True)
    )
    return graph


def ends(graph: propc.PropagationGraph) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for route in graph.routes:
        found.setdefault(route.source, []).extend(str(t) for t in route.targets)
    return found


def test_each_cost_to_the_sites_before_it() -> None:
    assert ends(graph_of("lr")) == {"cost0": ["x"], "cost1": ["x", "y"], "cost2": ["x", "z"]}


def test_only_sites_that_take_messages() -> None:
    assert ends(graph_of({"x": "lr", "*": "rp"})) == {"cost0": ["x"], "cost1": ["x"], "cost2": ["x"]}
    assert graph_of("rp").routes == ()


def test_one_route_for_each_baseline() -> None:
    """Sites under the same baseline share a message; others get their own."""
    moving = propc.estimator("lr", baseline="moving_average")
    routes = graph_of({"x": moving, "y": propc.estimator("lr"), "z": "tp"}).routes
    assert [(r.source, type(r.baseline).__name__, [t.site for t in r.targets]) for r in routes] == [
        ("cost0", "MovingAverage", ["x"]),
        ("cost1", "MovingAverage", ["x"]),
        ("cost1", "LeaveOneOut", ["y"]),
        ("cost2", "MovingAverage", ["x"]),
        ("cost2", "LeaveOneOut", ["z"]),
    ]


def test_a_site_with_two_inlets() -> None:
    """A combination of two score functions has a token for each; both receive every cost."""
    both = propc.estimator("combine", estimators=("lr", propc.estimator("lr", baseline=None)))
    graph = graph_of({"x": both, "*": "lr"})
    targets = {(type(r.baseline).__name__, t) for r in graph.routes if r.source == "cost1" for t in r.targets}
    assert targets == {
        ("LeaveOneOut", Token("x", 0)),
        ("LeaveOneOut", Token("y")),
        ("NoBaseline", Token("x", 1)),
    }


def test_two_inlets_under_one_baseline() -> None:
    both = propc.estimator("combine", estimators=("lr", "lr", "rp"))
    (route,) = [r for r in graph_of({"x": both, "*": "rp"}).routes if r.source == "cost0"]
    assert route.targets == (Token("x", 0), Token("x", 1))


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0), (0.0, 2.0, -3.0), (1.0, 0.0, 0.0)])
def test_messages_are_weighted_as_the_user_weighs_costs(weights: tuple[float, ...]) -> None:
    theta = torch.tensor(0.5, requires_grad=True)
    costs = seeded(propc.compile(branches, estimator="lr"), theta)
    plain = Plain()
    terms = [w * c for w, c in zip(weights, seeded(branches, theta, plain))]
    expected = surrogate(list(zip(terms, (["x"], ["x", "y"], ["x", "z"]))), plain.scores)
    found = sum(w * c for w, c in zip(weights, costs))
    assert isinstance(found, Tensor)
    torch.testing.assert_close(gradients(found.sum(), [theta]), gradients(expected.sum(), [theta]))


def test_an_unused_cost_sends_nothing() -> None:
    theta = torch.tensor(0.5, requires_grad=True)
    first, _, _ = seeded(propc.compile(branches, estimator="lr"), theta)
    plain = Plain()
    expected, _, _ = seeded(branches, theta, plain)
    loss = surrogate([(expected, ["x"])], plain.scores)
    torch.testing.assert_close(gradients(first.sum(), [theta]), gradients(loss.sum(), [theta]))
