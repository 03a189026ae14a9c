"""Prune: rules, routes and nodes that no gradient needs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from surrogate import Plain, gradients, seeded, surrogate
from torch import Tensor
from torch.distributions import Bernoulli, Normal

import propc
from propc.ir import Expand
from propc.passes import (
    DeduplicateStages,
    ExploreAlternatives,
    Fuse,
    Prune,
    RollScans,
    RouteMessages,
    Schedule,
)
from propc.propagators import LikelihoodRatioRule, PathwiseRule
from propc.propagators import Plain as OnlyDraws

BATCH = 5


def rules(graph: propc.PropagationGraph) -> dict[str, type]:
    return {s.name: type(s.rule) for s in graph.sites}


def parameter_at_first(theta: Tensor, sample: Any = propc.sample) -> Tensor:
    """After the first site, the parameter shows only through draws."""
    x = sample(Normal(theta.expand(BATCH), 1.0), "x")
    y = sample(Normal(torch.sin(x), 1.0), "y")
    z = sample(Bernoulli(logits=y), "z")
    return (x + z).square()


def test_score_sites_keep_cotangents_for_themselves() -> None:
    theta = torch.tensor(0.5, requires_grad=True)
    graph = propc.compile(parameter_at_first, estimator="lr").graph(theta)
    assert rules(graph) == {"x": LikelihoodRatioRule, "y": OnlyDraws, "z": OnlyDraws}
    assert graph["y"].reason == "no gradient leaves it"  # type: ignore[attr-defined]
    assert [[t.site for t in r.targets] for r in graph.routes] == [["x"]]


def test_pathwise_sites_hand_them_on() -> None:
    theta = torch.tensor(0.5, requires_grad=True)
    graph = propc.compile(parameter_at_first, estimator={"z": "lr", "*": "rp"}).graph(theta)
    assert rules(graph) == {"x": PathwiseRule, "y": PathwiseRule, "z": LikelihoodRatioRule}
    graph = propc.compile(parameter_at_first, estimator={"y": "rp", "*": "lr"}).graph(theta)
    assert rules(graph) == {"x": LikelihoodRatioRule, "y": OnlyDraws, "z": OnlyDraws}


def test_the_gradient_is_the_same() -> None:
    theta = torch.tensor(0.5, requires_grad=True)
    value = seeded(propc.compile(parameter_at_first, estimator="lr"), theta)
    plain = Plain()
    expected = seeded(parameter_at_first, theta, plain)
    everything = surrogate([(expected, ["x", "y", "z"])], plain.scores)
    torch.testing.assert_close(gradients(value.sum(), [theta]), gradients(everything.sum(), [theta]))


def test_a_detached_parameter() -> None:
    def program(theta: Tensor) -> Tensor:
        x = propc.sample(Normal(theta.detach().expand(BATCH), 1.0), "x")
        return x.square() * theta

    graph = propc.compile(program, estimator="lr").graph(torch.tensor(0.5, requires_grad=True))
    assert rules(graph) == {"x": OnlyDraws}
    assert graph.routes == ()


def test_idle_targets_go() -> None:
    """The tangents of a site that only draws are of no use."""

    def program(theta: Tensor) -> Tensor:
        x = propc.sample(Normal(theta * torch.ones(BATCH), 1.0), "x")
        propc.sample(Normal(theta * x, 1.0), "idle")
        return x.square()

    theta = torch.tensor(0.5, requires_grad=True)
    compiled = propc.compile(program, estimator=propc.estimator("tp", target="theta"))
    with pytest.warns(propc.PropcWarning, match="'idle'.*reaches no cost"):
        graph = compiled.graph(theta)
    assert [e.name for e in graph.of(Expand)] == ["x.expand"]


def test_nothing_to_prune() -> None:
    theta = torch.tensor(0.5, requires_grad=True)
    graphs = dict(propc.compile(parameter_at_first, estimator={"z": "lr", "*": "rp"}).graphs(theta))
    before, after = graphs["route-messages"], graphs["prune"]
    assert before.routes == after.routes
    assert dict(before.nodes) == dict(after.nodes)
    later = (RouteMessages, Prune, ExploreAlternatives, DeduplicateStages, Fuse, RollScans, Schedule)
    assert [p.name for p in later] == list(graphs)[-7:]
