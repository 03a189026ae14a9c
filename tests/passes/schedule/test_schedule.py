"""Schedule: forward in program order, the reverse pass in one engine call."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from surrogate import seeded
from torch import Tensor
from torch.distributions import Bernoulli, Normal

import propc
from propc.errors import GraphError
from propc.ir import Order

BATCH = 4


def program(theta: Tensor) -> Tensor:
    a = propc.sample(Normal(theta.expand(BATCH), 1.0), "a")
    noise = torch.randn(BATCH)
    b = propc.sample(Bernoulli(logits=theta * a), "b")
    free = propc.sample(Normal(torch.zeros(BATCH), 1.0), "free")
    return (a + noise * b + free).square()


def test_order() -> None:
    graph = propc.compile(program).graph(torch.tensor(0.5, requires_grad=True))
    assert graph.schedule.forward == tuple(graph.nodes)
    assert graph.schedule.reverse == ("b", "a")  # `free` only draws
    assert graph.schedule.engine_calls == 1


@pytest.mark.parametrize("estimator", ["infer", "lr", {"b": "lr", "*": "tp"}], ids=["infer", "lr", "tp"])
def test_draws_are_those_of_the_plain_program(estimator: object) -> None:
    """Marked and unmarked draws come in the order in which the user wrote them."""
    theta = torch.tensor(0.5, requires_grad=True)
    found = seeded(propc.compile(program, estimator=estimator), theta)
    torch.testing.assert_close(found, seeded(program, theta), rtol=1e-14, atol=0)


def test_verify_checks_the_schedule() -> None:
    graph = propc.compile(program).graph(torch.tensor(0.5, requires_grad=True))
    names = graph.schedule.forward
    with pytest.raises(GraphError, match="every node exactly once"):
        replace(graph, schedule=Order(names[:-1])).verify()
    with pytest.raises(GraphError, match="'output' before what it reads"):
        replace(graph, schedule=Order((names[-1], *names[:-1]))).verify()
