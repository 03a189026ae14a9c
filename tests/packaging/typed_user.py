"""A user's program as a strict type checker sees it: `make types` checks it, nothing runs it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.distributions import Normal
from typing_extensions import assert_type

import propc


@propc.compile(estimator="tp")
def linear_gaussian(beta: Tensor, x0: Tensor, horizon: int = 10) -> Tensor:
    x = x0
    for t in range(horizon):
        x = propc.sample(Normal(beta * x, 1.0), f"x{t}")
    return propc.cost(x.square().sum(-1), "end")


@propc.compile
def pair(theta: Tensor) -> tuple[Tensor, Tensor]:
    return theta, theta


class Agent:
    @propc.compile(estimator=lambda site: "rp" if site.spec.has_rsample else "lr")
    def loss(self, x: Tensor) -> Tensor:
        return outcome(x, times=2)


@propc.compile(estimator={"z*": "lr", "x*": propc.estimator("tp", weights="past")})
class Model(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x


@propc.opaque
def outcome(x: Tensor, times: int) -> Tensor:
    return times * x


@dataclass(frozen=True)
class Early(propc.passes.Pass):
    name: ClassVar[str] = "early"
    steps: int = 2

    def apply(self, graph: propc.PropagationGraph) -> propc.PropagationGraph:
        return graph.with_nodes(*(replace(site, requested="lr") for site in graph.sites[: self.steps]))


@dataclass(frozen=True)
class Mine(propc.Estimator):
    name: ClassVar[str] = "mine"

    def propagator(self, site: propc.estimators.SiteView) -> tuple[propc.propagators.SitePropagator, str]:
        return propc.propagators.PathwiseRule(), "asked for"


class Halve(propc.Propagator):
    def backward(self, node: propc.NodeView, message: propc.Message) -> propc.Message:
        return message.replace(grad=0.5 * message.grad)


def program(beta: Tensor, x0: Tensor) -> None:
    assert_type(linear_gaussian(beta, x0, horizon=3), Tensor)
    assert_type(pair(beta), tuple[Tensor, Tensor])
    assert_type(linear_gaussian.graph(beta, x0), propc.PropagationGraph)
    assert_type(linear_gaussian.with_estimator(Mine())(beta, x0), Tensor)
    assert_type(propc.compile(linear_gaussian, passes=[Early(steps=1), Early, "prune"])(beta, x0), Tensor)
    assert_type(propc.compile(pair, passes=[lambda pipeline: pipeline.without("prune")])(beta), tuple[Tensor, Tensor])
    assert_type(Agent().loss(x0), Tensor)
    assert_type(Agent().loss.with_estimator(propc.LikelihoodRatio)(x0), Tensor)
    assert_type(outcome(x0, times=3), Tensor)
    assert_type(propc.node(x0, "x0", propagator=Halve()), Tensor)
    assert_type(Model(), Model)
    assert_type(propc.compile(nn.Linear(2, 2)), Any)  # a module with more methods than its class has


def mistakes(beta: Tensor) -> None:
    linear_gaussian(beta)  # type: ignore[call-arg]
    linear_gaussian.graph(beta, beta, steps=3)  # type: ignore[call-arg]
    Agent().loss("x")  # type: ignore[arg-type]
    propc.compile(linear_gaussian, estimator=3)  # type: ignore[call-overload]
    propc.compile(linear_gaussian, passes=Early())  # type: ignore[call-overload]
    outcome(beta, times=torch.ones(()))  # type: ignore[arg-type]
