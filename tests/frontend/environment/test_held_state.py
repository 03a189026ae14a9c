"""Tensors, numbers and objects that a program holds: changes are seen, names are the user's."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from side_by_side import B, param, same
from torch import Tensor, nn
from torch.distributions import Categorical, MultivariateNormal, Normal, kl_divergence

import propc

GLOBAL = torch.tensor(2.0)
FACTOR = 1.0


def _global_program(x: Tensor) -> Tensor:
    return propc.sample(Normal(x * GLOBAL, 0.1), "x") * FACTOR


def test_rebinding_a_global_tensor_or_number_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = same(_global_program, param(B))
    torch.manual_seed(0)
    first = compiled(param(B))
    monkeypatch.setitem(globals(), "FACTOR", 3.0)
    torch.manual_seed(0)
    assert torch.allclose(compiled(param(B)), 3 * first)
    monkeypatch.setitem(globals(), "GLOBAL", torch.tensor(100.0))
    assert compiled(param(B)).mean() > 50


def test_rebinding_a_closed_over_tensor_or_number_is_seen() -> None:
    weight, scale, flag = torch.tensor(1.0, requires_grad=True), 1.0, "plus"

    def helper(x: Tensor) -> Tensor:
        return x * scale

    @propc.compile
    def program(x: Tensor) -> Tensor:
        y = helper(x * weight)
        return y if flag == "plus" else -y

    assert program(torch.ones(1)).item() == 1
    weight = torch.tensor(5.0, requires_grad=True)
    y = program(torch.ones(1))
    assert y.item() == 5
    y.sum().backward()
    assert weight.grad == 1
    scale = 2.0
    assert program(torch.ones(1)).item() == 10
    flag = "minus"
    assert program(torch.ones(1)).item() == -10


class Settings:
    def __init__(self) -> None:
        self.rate, self.weights, self.journal = 1.0, [torch.ones(1), {"w": torch.ones(1)}], [1.0]


def test_state_in_lists_dictionaries_and_objects_is_seen() -> None:
    settings, table, traces = Settings(), {"k": 1.0, "t": torch.ones(1)}, []

    @propc.compile
    def program(x: Tensor) -> Tensor:
        traces.append(1)
        return x * settings.rate * settings.weights[0] * settings.weights[1]["w"] * table["k"] * table["t"]

    assert program(torch.ones(1)).item() == 1
    settings.weights[0] = torch.full((1,), 2.0)
    settings.weights[1]["w"] = torch.full((1,), 2.0)
    table["t"] = torch.full((1,), 2.0)
    assert program(torch.ones(1)).item() == 8
    assert len(traces) == 1
    table["k"], settings.rate = 2.0, 2.0
    assert program(torch.ones(1)).item() == 32
    assert len(traces) == 2
    settings.journal.append(2.0)  # no code of the program mentions it
    program(torch.ones(1))
    assert len(traces) == 2


def test_the_graph_names_held_tensors_as_the_user_does() -> None:
    layer, weights = nn.Linear(2, 2), [torch.ones(2), torch.ones(2)]

    def program(x: Tensor) -> Tensor:
        return propc.sample(Normal(layer(x) * weights[1] + GLOBAL, 1.0), "x").sum(-1)

    names = {n.name for n in propc.compile(program).graph(torch.ones(B, 2))}
    assert names >= {"held.layer.weight", "held.layer.bias", "held.weights[1]", "held.GLOBAL"}


def test_a_distribution_held_by_the_program() -> None:
    prior = MultivariateNormal(torch.zeros(2), torch.eye(2), validate_args=True)
    base = Categorical(logits=torch.zeros(3))
    loc = torch.zeros(B, requires_grad=True)
    outer = Normal(loc, 1.0)

    def program(x: Tensor) -> Tensor:
        z = propc.sample(MultivariateNormal(x, torch.eye(2)), "z")
        c = propc.sample(base.expand([B]), "c")
        y = propc.sample(outer, "y")
        return kl_divergence(MultivariateNormal(x, torch.eye(2)), prior) + prior.log_prob(z) * base.probs[c] + y

    before = set(vars(prior)), set(vars(base))
    propc.compile(program, estimator={"c": "lr", "*": "rp"}).graph(param(B, 2))
    assert (set(vars(prior)), set(vars(base))) == before  # no traced tensor stays in a lazy property
    same(program, param(B, 2), estimator={"c": "lr", "*": "rp"})


class Holder:
    """A plain object whose method is compiled."""

    def __init__(self, scale: float) -> None:
        self.scale, self.w = scale, torch.tensor(scale, requires_grad=True)

    def loss(self, x: Tensor) -> Tensor:
        return self.scale * self.w * self._inner(x)

    def _inner(self, x: Tensor) -> Tensor:
        return propc.sample(Normal(x, 1.0), "x") + self.offset

    offset = 0.0

    def __call__(self, x: Tensor) -> Tensor:
        return self.loss(x)


@pytest.mark.parametrize(
    "pick", [lambda h: h.loss, lambda h: h, lambda h: lambda x: h.loss(x), lambda h: functools.partial(Holder.loss, h)]
)
def test_attributes_of_an_object_are_seen(pick: Callable[[Holder], Any]) -> None:
    holder = Holder(1.0)
    compiled = propc.compile(pick(holder))
    torch.manual_seed(0)
    first = compiled(torch.ones(B))
    for change, factor in (
        (lambda: setattr(holder, "scale", 2.0), 2.0),
        (lambda: setattr(holder, "w", torch.tensor(3.0, requires_grad=True)), 6.0),
    ):
        change()
        torch.manual_seed(0)
        y = compiled(torch.ones(B))
        assert torch.allclose(y, factor * first)
    y.sum().backward()
    assert holder.w.grad is not None
    holder.offset = 100.0
    assert compiled(torch.ones(B)).min() > 500
