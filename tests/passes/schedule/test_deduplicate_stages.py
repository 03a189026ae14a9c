"""Equal steps are one stage; steps that differ in anything that matters are not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal

import propc
from propc.ir import Segment

BATCH = 4
Step = Callable[[Tensor, Tensor, int], Tensor]


def stages(step: Step, horizon: int = 6) -> list[str]:
    """The stages of the segments that feed the sites after the first."""

    def program(theta: Tensor) -> Tensor:
        x = torch.zeros(BATCH) + theta
        for t in range(horizon):
            x = propc.sample(Normal(step(theta, x, t), 0.5), f"x{t}")
        return x.square()

    graph = propc.compile(program, estimator="rp").graph(torch.tensor(0.5, requires_grad=True))
    return [s.stage.name for s in graph.of(Segment) if s.name.startswith("x")][1:]  # type: ignore[union-attr]


EQUAL: dict[str, Step] = {
    "elementwise": lambda theta, x, t: torch.tanh(theta * x + 0.1),
    "keyword": lambda theta, x, t: torch.clamp(theta * x, min=-1.0, max=1.0),
    "indexed": lambda theta, x, t: torch.cat([x[1:], x[:1]]) * theta,
    "several steps": lambda theta, x, t: torch.sin(theta + torch.cos(x) * torch.stack([x, x]).sum(0)),
    "no_grad region": lambda theta, x, t: theta * x + _fixed(x),
    "tuple result": lambda theta, x, t: theta * torch.max(x[:, None], dim=1).values,
    "property": lambda theta, x, t: (theta * x[None]).T.sum(1),
}
DIFFERENT: dict[str, Step] = {
    "constants": lambda theta, x, t: torch.tanh(theta * x + 0.1 * t),
    "keywords": lambda theta, x, t: torch.clamp(theta * x, max=1.0 + t),
    "operations": lambda theta, x, t: (torch.sin, torch.cos, torch.tanh)[t % 3](theta * x) + float(t > 2),
    "index": lambda theta, x, t: theta * x + x[t % 3] + float(t > 2),
    "int against float": lambda theta, x, t: theta * x * (t if t % 2 else float(t)),
    "bool against int": lambda theta, x, t: theta * x * (1, True, 1.0, 2, 3, 4)[t],
}


def _fixed(x: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.cos(x)


@pytest.mark.parametrize("step", EQUAL.values(), ids=EQUAL)
def test_equal_steps(step: Step) -> None:
    assert len(set(stages(step))) == 1


@pytest.mark.parametrize("step", DIFFERENT.values(), ids=DIFFERENT)
def test_different_steps(step: Step) -> None:
    found = stages(step)
    assert len(set(found)) == len(found)


def test_shapes_count() -> None:
    def program(theta: Tensor) -> Tensor:
        a = propc.sample(Normal(torch.tanh(theta.expand(BATCH, 2)), 0.5), "xa")
        b = propc.sample(Normal(torch.tanh(theta.expand(BATCH, 3)), 0.5), "xb")
        c = propc.sample(Normal(torch.tanh(theta.expand(BATCH, 2)), 0.5), "xc")
        return a.sum(1) + b.sum(1) + c.sum(1)

    graph = propc.compile(program, estimator="rp").graph(torch.tensor(0.5, requires_grad=True))
    a, b, c = (graph[f"x{i}.in"].stage for i in "abc")  # type: ignore[attr-defined]
    assert a is c
    assert a is not b


def test_gradient_regions_count() -> None:
    """The same operation inside and outside no_grad is not the same code."""
    found = stages(lambda theta, x, t: theta * x + (_fixed(x) if t % 2 else torch.cos(x)))
    assert len(set(found)) == 2
    assert found == found[:2] * 2 + found[:1]


def test_equal_stages_run_equally() -> None:
    """Six uses of one stage give what the plain loop gives."""

    def program(theta: Tensor) -> Tensor:
        x = torch.zeros(BATCH) + theta
        for t in range(6):
            x = propc.sample(Normal(torch.tanh(theta * x + 0.1), 0.5), f"x{t}")
        return x.square()

    theta = torch.tensor(0.5, requires_grad=True)
    torch.manual_seed(0)
    compiled = propc.compile(program, estimator="rp")(theta)
    torch.manual_seed(0)
    plain = program(theta)
    assert torch.equal(compiled, plain)
    assert torch.autograd.grad(compiled.sum(), theta) == torch.autograd.grad(plain.sum(), theta)
