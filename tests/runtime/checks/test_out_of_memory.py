"""Out of memory: the error says at which node, how much was asked for, and what to do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from mistakes import B, normal, refused, run
from torch import Tensor
from torch.distributions import Bernoulli, Normal

import propc

pytestmark = pytest.mark.usefixtures("nothing_is_lost")


TOO_MANY = 2**50  # bytes, beyond any address space


def wide(x: Tensor) -> Tensor:
    """[B] → [B], by way of petabytes."""
    return x[:, None, None].expand(B, 2**25, 2**25).exp().mean((-1, -2))


def out_of_memory(call: Callable[[], Any], *words: str, **place: Any) -> None:
    error = refused(propc.OutOfMemoryError, call, "out of memory", "more were asked for", *words, **place)
    assert isinstance(error, torch.OutOfMemoryError)
    assert isinstance(error, MemoryError)
    assert "allocate" in str(error.__cause__)


def test_too_many_samples() -> None:
    def program(theta: Tensor) -> Tensor:
        x = normal(theta, "x")
        return (propc.sample(Normal(x, 1.0), "y") * theta).square()

    estimator = {"y": propc.estimator("lr", samples=TOO_MANY), "x": "rp"}
    words = "site 'y'", f"float64[{B}]", f"'y' ({TOO_MANY})", "fewer samples="
    out_of_memory(run(program, estimator=estimator), *words, program=program, at='"y"')


@pytest.mark.parametrize("chunk", [None, 2])
def test_too_much_in_a_plate(chunk: int | None) -> None:
    def program(theta: Tensor) -> Tensor:
        z = propc.sample(Bernoulli(logits=theta.expand(B)), "z")
        return wide(z * theta)

    way = "Use chunk= in propc.compile" if chunk is None else "Use a smaller chunk= in propc.compile"
    words = "segment 'cost.in'", "the plates of 'z' (3)", f"{way}, so that segments hold fewer of the 3 samples"
    call = run(program, estimator=propc.estimator("lr", samples=3), chunk=chunk)
    out_of_memory(call, *words, program=wide, at="exp")
    if chunk is None:
        call = run(program, estimator="enumerate")
        out_of_memory(call, "the plates of 'z' (2)", "2 configurations at once", "'lr' at site 'z'")


def test_a_large_batch() -> None:
    def program(theta: Tensor) -> Tensor:
        x = propc.sample(Normal(theta.expand(300), 1.0), "x")
        return x[:, None, None].expand(300, 2**25, 2**25).exp().mean((-1, -2))

    out_of_memory(run(program), "segment 'cost.in'", "Use passes=[propc.passes.ChunkBatch()]", "or a smaller batch")
    chunks = [propc.passes.ChunkBatch(rows=50)]
    out_of_memory(run(program, passes=chunks), "segment 'cost.in'", "Use fewer rows= in passes=[propc.passes.Chunk")


def long(theta: Tensor, where: int = 5) -> Tensor:
    x = theta.expand(B)
    for t in range(12):
        x = propc.sample(Normal((wide if t == where else torch.sin)(x * theta), 1.0), f"x{t}")
    return x.square()


def test_a_long_horizon() -> None:
    words = "segment 'x5.in'", f"float64[{B}]", "passes=[propc.passes.Checkpoint()]", "10 steps", "a smaller batch"
    out_of_memory(run(long, estimator="tp"), *words, program=wide, at="exp")
    blocks = [propc.passes.Checkpoint(blocks=3)]
    out_of_memory(run(long, estimator="tp", passes=blocks), "segment 'x5.in'", "Use more blocks= in passes=[propc.")


class TooMuchBack(torch.autograd.Function):
    """Runs out of memory in the reverse pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.sin()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad * torch.zeros(TOO_MANY).sum()


def test_out_of_memory_in_the_reverse_pass_of_a_block() -> None:
    def program(theta: Tensor) -> Tensor:
        x = theta.expand(B)
        for t in range(6):
            x = propc.sample(Normal((TooMuchBack.apply if t < 4 else torch.sin)(x * theta), 1.0), f"x{t}")
        return x.square()

    cost = run(program, estimator="rp", passes=[propc.passes.Checkpoint(blocks=3)])()
    out_of_memory(lambda: cost.sum().backward(), "segment 'x", "in the reverse pass of 'x2.in' to 'x4', where this is")


def test_out_of_memory_in_messages() -> None:
    class Much(propc.Propagator):
        sends = (propc.Field("extra"),)

        def backward(self, node: propc.NodeView, message: propc.Message) -> propc.Message:
            torch.zeros(TOO_MANY)
            return message

    def program(theta: Tensor) -> Tensor:
        return propc.node(theta.expand(B) * 2, "a", propagator=Much()).sin()

    out_of_memory(lambda: run(program, estimator="rp")().sum().backward(), "node 'a'", "in the reverse pass:")


def test_out_of_memory_in_the_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("propc.runtime.checks.replay.find_mixed", lambda *_: torch.zeros(TOO_MANY))
    words = "in the checks of the first call", "validate=False"
    refused(propc.OutOfMemoryError, run(lambda theta: normal(theta).square()), *words)
    assert run(lambda theta: normal(theta).square(), validate=False)().shape == (B,)


def test_other_errors_are_left_as_they_are() -> None:
    def program(theta: Tensor, table: Tensor, index: Tensor) -> Tensor:
        return normal(theta) * table[index]

    with pytest.raises(IndexError):
        run(program, torch.ones(3), torch.tensor([7] * B))()
