"""Enumerations that are too large, or empty: what is wrong is said before anything runs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from mistakes import refused
from torch import Tensor
from torch.distributions import Bernoulli, Categorical, Independent
from zoo import leaf

import propc

B = 4


def bits_in_a_row(theta: Tensor, steps: int) -> Tensor:
    """A hidden Markov model of three states."""
    table = theta * torch.eye(3)
    state, cost = torch.zeros(B, dtype=torch.long), torch.zeros(B)
    for t in range(steps):
        state = propc.sample(Categorical(logits=table[state]), f"z{t}")
        cost = cost + state.float()
    return cost


def test_the_configurations_of_many_sites() -> None:
    words = "3,486,784,401 joint configurations of 20 enumerated sites", "'z0', 'z1', 'z2' and 17 more", "GiB"
    words += "'rloo'", "'local'"
    compiled = propc.compile(bits_in_a_row, estimator="enumerate")
    error = refused(propc.EstimatorError, lambda: compiled(leaf(), 20), *words, program=bits_in_a_row, at="sample")
    assert "budget=" not in str(error)


def test_what_the_error_advises_works() -> None:
    compiled = propc.compile(bits_in_a_row, estimator="enumerate")
    refused(propc.EstimatorError, lambda: compiled(leaf(), 13), "1,594,323", "budget=1594323", "chunk=")
    budget = {"z0": propc.estimator("enumerate", budget=3**13), "*": "enumerate"}
    with pytest.warns(propc.PropcWarning, match="elements"):
        assert propc.compile(bits_in_a_row, estimator=budget).graph(leaf(), 13).sites
    for other in (propc.estimator("rloo", samples=2), "local"):
        assert propc.compile(bits_in_a_row, estimator={"z[01]": "enumerate", "*": other})(leaf(), 13).shape == (B,)


@pytest.mark.parametrize("estimator", ["enumerate", "infer", "lr"])
def test_an_empty_event(estimator: str) -> None:
    """It has one value, and probability 1."""

    def program(theta: Tensor) -> Tensor:
        z = propc.sample(Independent(Bernoulli(logits=theta.expand(B, 0)), 1), "z")
        return z.sum(1) + theta

    theta = leaf()
    propc.compile(program, estimator=estimator)(theta).sum().backward()
    assert theta.grad == B


def test_an_empty_batch() -> None:
    def program(theta: Tensor) -> Tensor:
        return propc.sample(Bernoulli(logits=theta.expand(0)), "z") * theta

    refused(propc.EstimatorError, lambda: propc.compile(program, estimator="lr")(leaf()), "empty", "no data")


@pytest.mark.parametrize("rows", [8, 100])
def test_a_cost_with_a_dimension_too_many(rows: int) -> None:
    def program(theta: Tensor) -> Tensor:
        return propc.sample(Bernoulli(logits=theta.expand(rows, 1)), "z") * theta

    def call() -> Any:
        return propc.compile(program, estimator="enumerate")(leaf())

    if rows == 100:
        words = "site 'z'", "[100, 1]", "Sum the returned cost over everything but the batch"
        refused(propc.PropcValueError, call, *words)
    else:
        assert call().shape == (rows, 1)


def test_no_budget_beyond_reason_is_advised() -> None:
    def program(theta: Tensor) -> Tensor:
        return propc.sample(Bernoulli(logits=theta.expand(B, 100)), "z").sum(1) * theta

    compiled = propc.compile(program, estimator="enumerate")
    error = refused(propc.EstimatorError, lambda: compiled(leaf()), "2^100 configurations", "'local'")
    assert "budget=" not in str(error)
    assert propc.compile(program, estimator="local")(leaf()).shape == (B,)
