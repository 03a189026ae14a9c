"""ChunkBatch: segments on a few rows at a time give what they give on all."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from memory import peak_bytes
from torch import Tensor, nn
from torch.distributions import Bernoulli, Normal

import propc
from propc.ir import Segment
from propc.passes import Checkpoint, ChunkBatch

BATCH = 50


class Model(nn.Module):
    """Wide inside its segments, narrow between them."""

    def __init__(self, width: int = 100) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(6, width), nn.Tanh(), nn.Linear(width, 3))
        self.decoder = nn.Sequential(nn.Linear(3, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh())
        self.last = nn.Linear(width, 6)

    def forward(self, x: Tensor) -> Tensor:
        z = propc.sample(Normal(self.encoder(x), 1.0), "z")
        return (self.last(self.decoder(z)) - x).square().sum(-1)


def rows_of(program: Any, *arguments: Any, estimator: Any = "rp", **options: Any) -> dict[str, int]:
    compiled = propc.compile(program, estimator=estimator, passes=[ChunkBatch(**options)])
    return {segment.name: segment.rows for segment in compiled.graph(*arguments).of(Segment)}


@pytest.mark.parametrize("estimator", ["rp", "lr", "tp", "gs", propc.estimator("tp", weights="past")], ids=range(5))
@pytest.mark.parametrize("rows", [1, 7, 25])
def test_the_same_numbers(rows: int, estimator: Any) -> None:
    model, x = Model(), torch.randn(BATCH, 6)
    found = []
    for passes in ((), (ChunkBatch(rows=rows),), (ChunkBatch(rows=rows), Checkpoint(at="*"))):
        compiled = propc.compile(model, estimator=estimator, passes=passes)
        torch.manual_seed(1)
        for _ in range(2):
            model.zero_grad()
            costs = compiled(x)
            costs.mean().backward()
        found.append((costs.detach(), torch.randn(3), *(p.grad.clone() for p in model.parameters())))
    assert rows_of(model, x, estimator=estimator, rows=rows).keys() >= {"z.in"}
    for other in found[1:]:
        for one, two in zip(found[0], other, strict=True):
            torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-11)


def test_shapes_with_the_batch_in_front() -> None:
    """They were traced with all rows."""

    def program(x: Tensor, theta: Tensor, scale: Tensor) -> Tensor:
        y = (x * theta).sin().cos().exp().view(len(x), -1).reshape(len(x), 3, 1).expand(len(x), 3, 2).flatten(1)
        z = propc.sample(Normal(y, scale), "z")
        return (z * torch.broadcast_to(theta[0], (len(x), 6))).sin().sum(-1)

    x, theta, scale = torch.randn(BATCH, 3), torch.rand(3).requires_grad_(), torch.rand(6).requires_grad_()
    found = []
    for passes in ((), (ChunkBatch(rows=7),)):
        compiled = propc.compile(program, estimator="tp", passes=passes)
        torch.manual_seed(1)
        found.append(torch.autograd.grad(compiled(x, theta, scale).mean(), (theta, scale)))
    assert rows_of(program, x, theta, scale, estimator="tp", rows=7) == {"z.in": 7, "cost.in": 7}
    torch.testing.assert_close(*found)


def test_second_derivatives() -> None:
    model, x, found = Model(5), torch.randn(BATCH, 6), []
    for passes in ((), (ChunkBatch(rows=8),)):
        compiled = propc.compile(model, estimator="lr", passes=passes)
        torch.manual_seed(1)
        weight = model.encoder[0].weight
        (first,) = torch.autograd.grad(compiled(x).mean(), weight, create_graph=True)
        found.append(torch.autograd.grad(first.square().sum(), weight)[0])
    torch.testing.assert_close(*found)


def test_less_memory() -> None:
    model, x = Model(300), torch.randn(1000, 6)
    held = []
    for passes in ((), (ChunkBatch(rows=50),)):
        compiled = propc.compile(model, estimator="tp", passes=passes, validate=False)
        held.append(peak_bytes(lambda: compiled(x).mean().backward(), torch.device("cpu")))  # noqa: B023
    assert held[1] < 0.35 * held[0]


def test_text() -> None:
    graph = propc.compile(Model(), estimator="rp", passes=["chunk-batch", ChunkBatch(rows=9, at="cost*")]).graph(
        torch.randn(BATCH, 6)
    )
    lines = [line for line in str(graph).splitlines() if "rows at once" in line]
    assert len(lines) == 1
    assert "%cost.in" in lines[0]
    assert "{linear, tanh, linear, tanh, linear, sub, square, sum}, 9 rows at once" in lines[0]


def test_a_batch_that_is_small_enough() -> None:
    assert set(rows_of(Model(), torch.randn(BATCH, 6)).values()) == {0}


def test_what_stays_whole() -> None:
    table = torch.randn(BATCH, 3)

    def program(x: Tensor, theta: Tensor) -> Tensor:
        a = propc.sample(Normal(torch.dropout(x * theta, 0.5, True), 1.0), "dropped")
        b = propc.sample(Normal(a / len(a) * theta, 1.0), "counted")
        written = b * theta
        written.view(BATCH, 3).add_(1)
        c = propc.sample(Normal(written, 1.0), "written")
        d = propc.sample(Normal(c * table, 1.0), "held")
        e = propc.sample(Normal((d * theta).T.sum(1), 1.0), "turned")
        return propc.sample(Normal((d * theta).sin() + e, 1.0), "good").sin().sum(-1)

    found = rows_of(program, torch.randn(BATCH, 3), torch.ones(3, requires_grad=True), rows=5)
    whole = {name for name, rows in found.items() if not rows}
    assert whole == {f"{name}.in" for name in ("dropped", "counted", "written", "held", "turned")}


def test_what_is_written_into_elsewhere_stays_whole() -> None:
    def model(theta: Tensor) -> Tensor:
        seen = (theta + 0.0).clone()
        x = propc.sample(Normal(torch.sin(2 * (seen + theta)), 1.0), "x")
        seen.view(BATCH, 1).mul_(0.5)
        return x * (seen + theta).cos()

    theta = torch.full((BATCH,), 0.3, dtype=torch.float64, requires_grad=True)
    found = []
    for passes in ((), (ChunkBatch(rows=3),)):
        compiled = propc.compile(model, estimator="rp", passes=passes)
        with pytest.warns(propc.PropcWarning, match="'x.in'.*written into elsewhere") if passes else nullcontext():
            compiled.graph(theta)
        torch.manual_seed(0)
        found += torch.autograd.grad(compiled(theta).sum(), theta)
    assert torch.equal(*found)


def test_plates_have_chunks_of_their_own() -> None:
    def program(theta: Tensor, x: Tensor) -> Tensor:
        z = propc.sample(Bernoulli(logits=(x * theta).sin()), "z")
        return (z * theta).sin()

    found = rows_of(program, torch.tensor(0.3, requires_grad=True), torch.ones(BATCH), estimator="enumerate", rows=5)
    assert found == {"z.in": 5, "cost.in": 0}


@pytest.mark.parametrize(
    "mixing",
    [lambda x: x - x.mean(0), lambda x: x - x[0], lambda x: x.cumsum(0), lambda x: x @ x.T @ x, lambda x: x.flip(0)],
    ids=["mean", "index", "cumsum", "product", "flip"],
)
def test_rows_that_mix_are_found_at_the_first_call(mixing: Any) -> None:
    def program(theta: Tensor, x: Tensor) -> Tensor:
        return propc.sample(Normal(mixing(x * theta), 1.0), "z").sum(-1)

    compiled = propc.compile(program, estimator="rp", passes=[ChunkBatch(rows=10, at="z.in")])
    words = r"segment 'z.in' \(test_chunk_batch.py:\d+\): .*rows of the batch a few at a time.*ChunkBatch\(at="
    with pytest.raises(propc.GraphError, match=words):
        compiled(torch.tensor(1.0, requires_grad=True), torch.randn(BATCH, 3))


def test_no_batch_is_refused() -> None:
    with pytest.raises(propc.GraphError, match=r"no costs of shape \[batch\].*Leave out|leave out"):
        rows_of(lambda theta: propc.sample(Normal(theta, 1.0), "z"), torch.tensor(1.0, requires_grad=True), rows=3)


def test_nothing_to_do_is_a_warning() -> None:
    def program(theta: Tensor) -> Tensor:
        return propc.sample(Normal(theta.expand(BATCH), 1.0), "z")

    with pytest.warns(propc.PropcWarning, match=r"no segment of 'program'.*'z.in'.*reads nothing with the batch"):
        rows_of(program, torch.tensor(1.0, requires_grad=True), rows=3)


@pytest.mark.parametrize(
    ("options", "words"), [({"rows": 0}, "rows=0"), ({"rows": 2.5}, r"rows=2\.5"), ({"at": [3]}, "at=")]
)
def test_bad_options(options: dict[str, Any], words: str) -> None:
    with pytest.raises(propc.PropcError, match=words):
        ChunkBatch(**options)


def _written(theta: Tensor) -> Tensor:
    h = propc.sample(Normal(theta, 1.0), "x").clone()
    h[:, 0] = 1.0
    return h.sin().exp().sum(1)


def _made(theta: Tensor) -> Tensor:
    x = propc.sample(Normal(theta, 1.0), "x")
    return ((torch.zeros([len(x), 3]) + x).exp().sum(1) + torch.zeros(len(x))).sin()


@pytest.mark.filterwarnings("ignore:.*no segment:propc.PropcWarning")
@pytest.mark.parametrize("program", [_written, _made])
def test_chunks_beside_writes_and_factories(program: Callable[[Tensor], Tensor]) -> None:
    found = []
    for passes in ([], [propc.passes.ChunkBatch(rows=4)]):
        theta = torch.linspace(0, 1, 48).reshape(16, 3).requires_grad_()
        torch.manual_seed(0)
        loss = propc.compile(program, estimator="lr", passes=passes)(theta)
        found.append((loss, *torch.autograd.grad(loss.sum(), theta)))
    torch.testing.assert_close(*found)
