"""Rows that mix are found in large batches, and where a discrete draw is nearly sure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Bernoulli, Categorical, Distribution, Independent, Normal, OneHotCategorical

import propc

LARGE = 20_000
MIXING: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": lambda x: x * x.mean() + 5,
    "batch norm": lambda x: torch.nn.functional.batch_norm(x[:, None], None, None, training=True)[:, 0] + 10,
    "softmax": lambda x: x.softmax(0),
    "flip": lambda x: x.flip(0),
    "neighbours": lambda x: x.unflatten(0, (-1, 2)).flip(1).flatten(),
    "halves": lambda x: x + x.roll(len(x) // 2),
}
APART: dict[str, Callable[[Tensor], Tensor]] = {
    "elementwise": lambda x: x.sin() * 3,
    "matrix": lambda x: (torch.stack([x, x.cos()], 1) @ torch.ones(2, 3)).sum(1),
    "order": lambda x: x.flip(0).exp().flip(0),
}


def run(law: Callable[[Tensor], Distribution], mix: Callable[[Tensor], Tensor]) -> Any:
    program = propc.compile(lambda theta: mix(propc.sample(law(theta), "x")), estimator="lr")
    return program(torch.tensor(0.4, requires_grad=True))


@pytest.mark.parametrize("law", [Bernoulli, Normal])
@pytest.mark.parametrize("mix", MIXING)
def test_large_batches(mix: str, law: type) -> None:
    def made(theta: Tensor) -> Distribution:
        return Normal(theta.expand(LARGE), 1.0) if law is Normal else Bernoulli(logits=theta.expand(LARGE))

    with pytest.raises(propc.GraphError, match="mixes samples"):
        run(made, MIXING[mix])
    for each in APART.values():
        assert run(made, each).shape == (LARGE,)


def surely(theta: Tensor, *shape: int) -> Tensor:
    """Logits of three classes, of which the first is drawn nearly always."""
    return torch.stack([theta + 40, theta, theta]).expand(*shape, 3)


SURE: dict[str, Callable[[Tensor], Distribution]] = {
    "Bernoulli 1": lambda theta: Bernoulli(logits=(theta + 40).expand(6)),
    "Bernoulli 0": lambda theta: Bernoulli(logits=(theta - 40).expand(6)),
    "Categorical": lambda theta: Categorical(logits=surely(theta, 6)),
    "OneHotCategorical": lambda theta: OneHotCategorical(logits=surely(theta, 6)),
    "several": lambda theta: Independent(OneHotCategorical(logits=surely(theta, 6, 2)), 1),
}


@pytest.mark.parametrize("law", SURE)
def test_draws_that_are_nearly_sure(law: str) -> None:
    with pytest.raises(propc.GraphError, match="mixes samples"):
        run(SURE[law], lambda x: x.double().reshape(6, -1)[:, 0].flip(0))
    assert run(SURE[law], lambda x: x.double().reshape(6, -1)[:, 0]).shape == (6,)
