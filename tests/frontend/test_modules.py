"""Modules in a program: layers, modes, replaced parts, buffers written in place."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from side_by_side import B
from torch import Tensor, nn
from torch.distributions import Normal

import propc


class Zoo(nn.Module):
    """Many kinds of layers."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 8)
        self.conv = nn.Conv1d(8, 8, 3, padding=1)
        self.norm = nn.LayerNorm(8)
        self.gru = nn.GRU(8, 8, batch_first=True)
        self.attend = nn.MultiheadAttention(8, 2, dropout=0.1, batch_first=True)
        self.drop = nn.Dropout(0.3)
        self.encoder = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.head = nn.Sequential(nn.Linear(8, 4), nn.GELU(), nn.Linear(4, 2))

    def forward(self, tokens: Tensor) -> Tensor:
        h = self.conv(self.embed(tokens).transpose(1, 2)).transpose(1, 2)
        h, _ = self.gru(self.norm(h))
        h = h + self.attend(h, h, h)[0]
        h = self.drop(self.encoder(h))
        loc, scale = self.head(h.mean(1)).unbind(-1)
        return propc.sample(Normal(loc, F.softplus(scale)), "z").square()


@pytest.mark.parametrize("training", [True, False])
def test_layers(training: bool) -> None:
    model = Zoo().train(training)
    tokens = torch.randint(7, (B, 6))
    compiled = propc.compile(model, estimator="rp")
    outcomes = []
    for call in (model, compiled):
        torch.manual_seed(3)
        loss = call(tokens)
        outcomes.append((loss, torch.autograd.grad(loss.sum(), list(model.parameters())), torch.get_rng_state()))
    (a, da, s), (b, db, t) = outcomes
    assert torch.equal(a, b)
    assert all(torch.allclose(g, h, rtol=1e-12, atol=1e-14) for g, h in zip(da, db))
    assert torch.equal(s, t)


def test_train_and_eval_are_different_programs() -> None:
    drop = nn.Dropout(0.5)

    @propc.compile
    def program(x: Tensor) -> Tensor:
        return drop(x)

    x = torch.ones(1000)
    assert 0.3 < program(x).eq(0).double().mean() < 0.7
    drop.eval()
    assert program(x).eq(1).all()
    drop.train()
    assert program(x).eq(0).any()
    drop.p = 0.9
    assert program(x).eq(0).double().mean() > 0.8


class Swap(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.act: nn.Module = nn.ReLU()
        self.mask = torch.ones(3)  # neither parameter nor buffer
        self.sizes = [1.0, 2.0]

    def forward(self, x: Tensor) -> Tensor:
        return self.act(x) * self.mask * self.sizes[0]


def test_replaced_layers_hooks_tensors_and_lists_are_seen() -> None:
    model = Swap()
    compiled = propc.compile(model)
    x = torch.tensor([-1.0, 0.5, 2.0])
    assert torch.equal(compiled(x), torch.relu(x))
    compiled.act = nn.Tanh()
    assert torch.equal(compiled(x), torch.tanh(x))
    compiled.mask = torch.zeros(3)
    assert compiled(x).eq(0).all()
    compiled.mask = torch.ones(3)
    compiled.sizes[0] = 3.0
    assert torch.equal(compiled(x), torch.tanh(x) * 3)
    compiled.act.register_forward_hook(lambda module, args, out: out + 1)
    assert torch.equal(compiled(x), (torch.tanh(x) + 1) * 3)


def test_buffers_written_in_place() -> None:
    class Counter(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))
            self.register_buffer("mean", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            with torch.no_grad():
                self.mean.mul_(0.9).add_(0.1 * x.mean())
            return propc.sample(Normal(x + self.mean, 1.0), "x")

    model = Counter()
    compiled = propc.compile(model, estimator="rp")
    plain = Counter()
    for _ in range(3):
        torch.manual_seed(0)
        a = compiled(torch.ones(B))
        torch.manual_seed(0)
        b = plain(torch.ones(B))
        assert torch.equal(a, b)
    assert model.calls == 3
    assert torch.equal(model.mean, plain.mean)


def test_without_values_on_the_meta_device() -> None:
    compiled = propc.compile(Zoo(), estimator="tp").to("meta")
    cost = compiled(torch.zeros(B, 6, dtype=torch.long, device="meta"))
    cost.sum().backward()
    assert cost.shape == (B,)
    assert compiled.embed.weight.grad.shape == (7, 8)
