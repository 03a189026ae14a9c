"""Marks that cannot stand: each error names the site, cost or node and its line."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from mistakes import B, normal, refused, run
from torch import Tensor
from torch.distributions import Bernoulli, Normal
from zoo import leaf

import propc

pytestmark = pytest.mark.usefixtures("nothing_is_lost")


def test_what_can_be_marked() -> None:
    def no_law(theta: Tensor) -> Tensor:
        return propc.sample(theta, "z")

    refused(propc.PropcTypeError, run(no_law), "'z'", "got a tensor", "Normal(loc, scale)", program=no_law, at="sample")
    refused(TypeError, lambda: propc.sample(3.0, "z"), "'z'", "float 3.0")
    refused(TypeError, lambda: propc.sample(Normal, "z"), "the class Normal")

    def no_tensor(theta: Tensor) -> Tensor:
        return propc.cost(3.0, "loss")

    refused(propc.PropcTypeError, run(no_tensor), "cost 'loss'", "float 3.0", program=no_tensor, at="propc.cost")
    refused(TypeError, lambda: propc.cost([1.0], "loss"), "list")
    refused(TypeError, run(lambda theta: propc.node(3.0, "n")), "node 'n'")

    def table(theta: Tensor) -> Tensor:
        return propc.cost(normal(theta)[:, None], "loss").sum(1)

    refused(propc.PropcValueError, run(table), "cost 'loss'", "float64[6, 1]", "Sum", program=table, at="propc.cost")

    def integer(theta: Tensor) -> Tensor:
        return propc.cost(normal(theta).long(), "loss")

    refused(propc.PropcValueError, run(integer), "cost 'loss'", "int64[6]", ".float()", program=integer, at="cost")


def test_a_complex_cost_and_a_list() -> None:
    def imaginary(theta: Tensor) -> Tensor:
        return propc.cost(normal(theta) * 1j, "loss")

    refused(propc.PropcValueError, run(imaginary), "cost 'loss'", ".real or .abs()", program=imaginary, at="cost")
    refused(propc.PropcTypeError, run(lambda theta: propc.cost([normal(theta)], "loss")), "list [a tensor]")


@pytest.mark.parametrize(("choice", "kind"), [("los", propc.PropcValueError), (3, propc.PropcTypeError)])
def test_a_propagator_that_is_none_names_its_node(choice: Any, kind: type[Exception]) -> None:
    def program(theta: Tensor) -> Tensor:
        return propc.cost(propc.node(normal(theta), "n", propagator=choice), "loss")

    def at_the_cost(theta: Tensor) -> Tensor:
        return propc.cost(normal(theta), "loss", propagator=choice)

    refused(kind, run(program), "node 'n'", "'loss'" if choice == "los" else "Known", program=program, at="propc.node")
    refused(kind, run(at_the_cost), "cost 'loss'", program=at_the_cost, at="propc.cost")


@pytest.mark.parametrize("estimator", ["local", "mvd", "enumerate", "disarm", "rloo", "st"])
def test_an_empty_batch(estimator: str) -> None:
    theta = leaf()
    program = propc.compile(lambda t: propc.sample(Bernoulli(logits=t.expand(0)), "b").square(), estimator=estimator)
    loss = program(theta)
    loss.sum().backward()
    assert loss.shape == (0,)
    assert theta.grad == 0


def test_a_table_that_is_enumerated() -> None:
    """What is returned is no cost; the site has no batch then, and all its values are taken."""
    theta = leaf()
    program = propc.compile(
        lambda t: propc.sample(Bernoulli(logits=t.expand(3)), "b")[:, None] * torch.ones(2), estimator="enumerate"
    )
    table = program(theta)
    (found,) = torch.autograd.grad(table.sum(), theta)
    (wanted,) = torch.autograd.grad(6 * theta.sigmoid(), theta)
    assert torch.allclose(table, theta.sigmoid().expand(3, 2))
    assert torch.allclose(found, wanted)


def test_names() -> None:
    def twice(theta: Tensor) -> Tensor:
        x = normal(theta, "z")
        return x + propc.sample(Normal(x, 1.0), "z")

    refused(propc.PropcValueError, run(twice), "site 'z'", "already taken", "f'x{t}'", program=twice, at="return")
    refused(propc.PropcTypeError, run(lambda theta: normal(theta, 3)), "non-empty string", "3")
    refused(propc.PropcTypeError, run(lambda theta: normal(theta, "")), "non-empty string")


class Hiding(Normal):
    """A user's law that keeps its tensor out of sight."""

    def __init__(self, loc: Tensor) -> None:
        super().__init__(torch.zeros(B), 1.0)
        self.shift = {"by": lambda x: x + loc}

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        return self.shift["by"](super().rsample())


def test_a_tensor_hidden_in_a_distribution() -> None:
    def program(theta: Tensor) -> Tensor:
        return propc.sample(Hiding(theta), "z")

    refused(
        propc.PropcTypeError,
        run(program),
        "site 'z'",
        "closes over a traced tensor",
        "attribute",
        program=program,
        at="sample",
    )
