"""What a pass in front of split-costs has done is kept, or refused; it is never dropped in silence."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
import zoo
from torch import Tensor
from torch.distributions import Normal

import propc
from propc.ir import Site


def rewards(theta: Tensor) -> Tensor:
    x = propc.sample(Normal(theta.expand(5), 1.0), "x")
    y = propc.sample(Normal(theta * x, 1.0), "y")
    return x.square() + y.square()


def in_front(step: Any) -> Any:
    return propc.compile(rewards, estimator="rp", passes=[lambda pipeline: pipeline.before("split-costs", step)])


@dataclass(frozen=True)
class Ask(propc.passes.Pass):
    """A site asks for an estimator."""

    def apply(self, graph: propc.PropagationGraph) -> propc.PropagationGraph:
        return graph.with_estimator("x", "lr")


@dataclass(frozen=True)
class Insert(propc.passes.Pass):
    """A node behind a site."""

    def apply(self, graph: propc.PropagationGraph) -> propc.PropagationGraph:
        return graph.insert_after("x", torch.neg, label="negative")


@dataclass(frozen=True)
class Rewire(propc.passes.Pass):
    """A cost that split-costs takes apart reads something else."""

    def apply(self, graph: propc.PropagationGraph) -> propc.PropagationGraph:
        (cost,) = graph.costs
        return graph.with_nodes(replace(cost, path="elsewhere"))


@pytest.fixture
def theta() -> Tensor:
    return zoo.leaf(0.5)


def test_what_a_site_asks_for_is_kept(theta: Tensor) -> None:
    graph = in_front(Ask).graph(theta)
    assert {site.name: site.estimator for site in graph.of(Site)} == {"x": "lr", "y": "rp"}
    assert len(graph.costs) == 2


@pytest.mark.parametrize("step", [Insert, Rewire])
def test_what_cannot_be_kept_is_refused(step: type[propc.passes.Pass], theta: Tensor) -> None:
    with pytest.raises(propc.GraphError, match=r"(?s)in front of split-costs.*behind") as raised:
        in_front(step).graph(theta)
    assert "test_before_split_costs.py" in str(raised.value)


def test_the_advice_works(theta: Tensor) -> None:
    late = propc.compile(rewards, estimator="rp", passes=[lambda pipeline: pipeline.behind("split-costs", Insert)])
    assert "negative" in late.graph(theta).nodes
