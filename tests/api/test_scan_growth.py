"""What a long scan costs: tracing, steps and memory that do not grow with its length."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch
from scan_programs import both, program, walk
from torch import Tensor

import propc
from propc.ir import Scan
from propc.passes import Checkpoint

pytestmark = pytest.mark.filterwarnings("ignore:.*reaches no cost")  # draws that nobody reads


def test_tracing_does_not_grow() -> None:
    """The graph of a hundred thousand steps is that of twenty, and takes as long."""
    theta = torch.tensor([0.5, 0.3, 0.2], requires_grad=True)
    graphs = {n: propc.compile(program(walk, both, n, scanned=True), estimator="tp") for n in (20, 100_000)}
    short = graphs[20].graph(theta)
    start = time.perf_counter()
    long = graphs[100_000].graph(theta)
    assert time.perf_counter() - start < 1
    assert len(long) == len(short)
    assert len(long.routes) == len(short.routes)
    assert len(long.joins) == len(short.joins)
    assert long.of(Scan)[0].length == 100_000 - 7


@pytest.mark.slow
def test_ten_thousand_steps() -> None:
    """Forward, backward, and letting go of a deep graph."""
    theta = torch.tensor([0.5, 0.3, 0.2], requires_grad=True)
    cost = propc.compile(program(walk, both, 10_000, scanned=True), estimator="lr")(theta)
    cost.mean().backward()
    assert theta.grad is not None
    assert bool(theta.grad.isfinite().all())


def kept(length: int, passes: list[Any]) -> int:
    """How many numbers autograd keeps for the reverse pass."""
    alive: set[int] = set()

    class Held:
        def __init__(self, value: Tensor) -> None:
            self.value = value
            alive.add(id(self))

        def __del__(self) -> None:
            alive.discard(id(self))

    theta = torch.tensor([0.5, 0.3, 0.2], requires_grad=True)
    compiled = propc.compile(program(walk, both, length, scanned=True), estimator="lr", passes=passes)
    compiled(theta)
    with torch.autograd.graph.saved_tensors_hooks(Held, lambda held: held.value):
        cost = compiled(theta)
    count = len(alive)
    del cost
    return count


@pytest.mark.slow
def test_checkpoint_keeps_few_states() -> None:
    """Four times the steps: four times the values, and twice with blocks."""
    plain = kept(1600, []) / kept(400, [])
    blocks = kept(1600, [Checkpoint()]) / kept(400, [Checkpoint()])
    assert 3 < plain < 5
    assert 1.5 < blocks < 2.7
