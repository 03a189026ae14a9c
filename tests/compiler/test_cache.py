"""One graph for each kind of call: what makes a new one, and what does not."""

from __future__ import annotations

import pytest
import torch
from side_by_side import B, param
from torch import Tensor, nn
from torch.distributions import Normal

import propc


def test_a_new_shape_dtype_requires_grad_or_grad_mode_is_traced_anew() -> None:
    traces = []

    @propc.compile
    def program(x: Tensor) -> Tensor:
        traces.append((tuple(x.shape), x.dtype, x.requires_grad, torch.is_grad_enabled()))
        return propc.sample(Normal(x, 1.0), "x")

    for x in (param(B), param(B), param(4), param(B).float().detach(), torch.ones(B), torch.ones(B)):
        program(x)
    assert len(traces) == 4
    with torch.no_grad():
        program(param(B))
        program(param(B))
        assert not program(param(B)).requires_grad
    assert len(traces) == 5
    with torch.inference_mode():
        assert program(torch.ones(B)).is_inference()
    assert program(param(B)).requires_grad
    with torch.autocast("cpu", dtype=torch.bfloat16):
        program(param(B))
    with torch.autocast("cpu", dtype=torch.float16):
        program(param(B))
    assert len(traces) == 8
    torch.set_default_dtype(torch.float32)
    program(param(B).double().detach())
    torch.set_default_dtype(torch.float64)
    assert len(traces) == 9


def test_frozen_and_unfrozen_in_turn_keep_their_graphs() -> None:
    layer = nn.Linear(2, 1)
    traces = []

    @propc.compile
    def program(x: Tensor) -> Tensor:
        traces.append(1)
        return propc.sample(Normal(layer(x).squeeze(-1), 1.0), "x")

    for _ in range(3):
        for wants in (True, False):
            layer.requires_grad_(wants)
            assert program(torch.ones(B, 2)).requires_grad == wants
    assert len(traces) == 2


def test_many_traces_are_warned_of_once() -> None:
    @propc.compile
    def program(x: Tensor, k: float) -> Tensor:
        return x * k

    def call_often() -> None:
        for k in range(20):
            program(torch.ones(2), float(k))

    with pytest.warns(propc.PropcWarning, match="traced 16 times") as caught:
        call_often()
    assert len(caught) == 1
    assert caught[0].filename == __file__
