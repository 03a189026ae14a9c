"""Fuse: joins of tokens; edges linear in the horizon; the same gradient as without."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
import zoo
from surrogate import gradients, seeded
from torch import Tensor
from torch.distributions import Normal

import propc
from propc.ir import Join, Token

BATCH = 5


def rewards(theta: Tensor, horizon: int) -> Tensor:
    return zoo.rewards(zoo.sine_map(theta), torch.cos, torch.zeros(BATCH), horizon)


def fan(theta: Tensor, horizon: int) -> Tensor:
    """Independent sites, each with a cost of its own: nothing to share."""
    xs = [propc.sample(Normal(theta.expand(BATCH), 0.5), f"x{t}") for t in range(horizon)]
    return torch.stack([torch.cos(x) for x in xs]).sum(0)


def backwards(theta: Tensor, horizon: int) -> Tensor:
    """The first cost sees all sites, later ones fewer."""
    xs = [propc.sample(Normal(theta.expand(BATCH), 0.5), f"x{t}") for t in range(horizon)]
    suffixes = [torch.stack(xs[: horizon - t]).prod(0) for t in range(horizon)]
    return torch.stack(suffixes).sum(0)


def tree(theta: Tensor, horizon: int) -> Tensor:
    x = [propc.sample(Normal(theta.expand(BATCH), 0.5), "x0")]
    for t in range(1, horizon):
        x.append(propc.sample(Normal(theta * x[(t - 1) // 2], 0.5), f"x{t}"))
    return torch.stack([torch.cos(v) for v in x]).sum(0)


def edges(graph: propc.PropagationGraph) -> int:
    return sum(len(j.members) for j in graph.joins) + sum(len(r.through) for r in graph.routes)


def test_a_chain_has_linear_edges() -> None:
    theta = torch.tensor(0.5, requires_grad=True)
    compiled = propc.compile(rewards, estimator="lr")
    for horizon in (5, 10, 40):
        graph = compiled.graph(theta, horizon)
        assert sum(len(r.targets) for r in graph.routes) == horizon * (horizon + 1) // 2
        assert len(graph.joins) == horizon - 1
        assert edges(graph) == 3 * horizon - 2


def expanded(token: Token, joins: Mapping[str, Join]) -> list[Token]:
    """The sites' tokens that a token stands for."""
    if token.site not in joins:
        return [token]
    return [t for member in joins[token.site].members for t in expanded(member, joins)]


PROGRAMS = [rewards, fan, backwards, tree]
MIXED = {"x1": propc.estimator("lr", baseline=None), "x[24]": "tp", "x*": "lr"}


@pytest.mark.parametrize("estimator", ["lr", "tp", MIXED], ids=["lr", "tp", "mixed"])
@pytest.mark.parametrize("program", PROGRAMS, ids=lambda p: p.__name__)
def test_every_target_is_behind_its_join_once(program: Callable[..., Tensor], estimator: Any) -> None:
    graph = propc.compile(program, estimator=estimator).graph(torch.tensor(0.5, requires_grad=True), 6)
    joins = {j.name: j for j in graph.joins}
    for route in graph.routes:
        found = [t for token in route.through for t in expanded(token, joins)]
        assert sorted(map(str, found)) == sorted(map(str, route.targets))


@propc.passes.register("apart")
@dataclass(frozen=True)
class Apart(propc.passes.Pass):
    """Undo fuse: a join of its own for every route."""

    after = "fuse"

    def apply(self, graph: propc.PropagationGraph) -> propc.PropagationGraph:
        joins = [Join(f"own{i}", r.targets) for i, r in enumerate(graph.routes)]
        routes = [replace(r, through=(Token(j.name),)) for r, j in zip(graph.routes, joins)]
        return replace(graph, joins=tuple(joins), routes=tuple(routes))


@pytest.mark.parametrize("estimator", ["lr", "tp", MIXED], ids=["lr", "tp", "mixed"])
@pytest.mark.parametrize("program", PROGRAMS, ids=lambda p: p.__name__)
def test_same_gradient_without(program: Callable[..., Tensor], estimator: Any) -> None:
    theta = torch.tensor(0.5, requires_grad=True)
    results = [
        seeded(propc.compile(program, estimator=estimator, passes=passes), theta, 6) for passes in ((), (Apart,))
    ]
    assert torch.equal(*results)
    with_fuse, without = (gradients(r.sum(), [theta]) for r in results)
    torch.testing.assert_close(with_fuse, without, rtol=1e-10, atol=1e-12)
