"""A compiled step is a citizen of autograd: whatever a user does with a loss does what it does on eager."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from agreement import assert_agree, assert_same, pair, step
from laws_and_estimators import CHAIN, B, bits, costs_on_the_way, fixed_scale, rows, theta
from torch import Tensor, nn
from torch.distributions import Bernoulli, Normal

import propc
from propc.errors import EstimatorError

pytestmark = [pytest.mark.filterwarnings("ignore::propc.PropcWarning"), pytest.mark.usefixtures("plain")]


def two_costs(theta: Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    z = propc.sample(Normal(theta * x, 1.0), "z")
    y = propc.sample(Normal(z.sin() * theta, 0.5), "y")
    return propc.cost(z.square().sum(-1), "early"), propc.cost(y.cos().sum(-1), "late"), z.argmax(-1)


@pytest.mark.parametrize("estimator", ["rp", "lr", "tp", "infer"])
@pytest.mark.parametrize(
    "loss",
    [lambda r: (2 * r[0] - 0.5 * r[1]).mean(), lambda r: r[0].sum(), lambda r: r[1].sum(), lambda r: r[1][::2].sum()],
    ids=["weighted", "early", "late", "some rows"],
)
def test_costs_in_any_combination(estimator: str, loss: Any) -> None:
    assert_agree(two_costs, (theta(), rows(B)), estimator, loss=loss)


@pytest.mark.parametrize("batch", [2, 3, 8])
@pytest.mark.parametrize("estimator", ["lr", "tp", "rp"])
def test_batches(batch: int, estimator: str) -> None:
    assert_agree(costs_on_the_way, (theta(), rows(batch)), estimator)


@pytest.mark.parametrize("estimator", ["lr", "tp", "rp"])
def test_float32(estimator: str) -> None:
    start = theta().detach().float().requires_grad_()
    assert_agree(costs_on_the_way, (start, rows(B, dtype=torch.float32)), estimator)


def test_gradients_in_both_arguments() -> None:
    x = rows(B).requires_grad_()
    (report,) = assert_agree(costs_on_the_way, (theta(), x), "tp")
    assert report.stages


def warm(estimator: Any = "tp", program: Any = costs_on_the_way) -> tuple[Any, Any, Tensor, Tensor]:
    eager, inductor = pair(program, estimator)
    start, x = theta(), rows(B)
    for compiled in (eager, inductor):
        step(compiled, (start, x), 0)
        step(compiled, (start, x), 1)
    return eager, inductor, start, x


def test_some_gradients_by_autograd_grad() -> None:
    eager, inductor, start, _ = warm()
    x = rows(B).requires_grad_()
    found = []
    for compiled in (eager, inductor):
        for seed in range(3):
            torch.manual_seed(seed)
            grads = torch.autograd.grad(compiled(start, x).sum(), [x])
        found.append(grads)
    assert_same(found[1], found[0])


def test_backward_twice() -> None:
    eager, inductor, start, x = warm()
    found = []
    for compiled in (eager, inductor):
        torch.manual_seed(5)
        loss = compiled(start, x).sum()
        first = torch.autograd.grad(loss, start, retain_graph=True)
        second = torch.autograd.grad(loss, start)
        found.append((*first, *second))
        with pytest.raises(RuntimeError, match="backward through the graph a second time"):
            loss.backward()
    assert_same(found[1], found[0])
    assert_same(found[1][:1], found[1][1:])


@pytest.mark.parametrize("name", ["rp", "lr", "lr-moving", "lr-samples", "rp-samples", "mixed-scores"])
@pytest.mark.parametrize("program", [costs_on_the_way, fixed_scale])
def test_second_derivatives(name: str, program: Any) -> None:
    eager, inductor, start, x = warm(CHAIN[name], program)
    found = []
    for compiled in (eager, inductor):
        torch.manual_seed(5)
        costs = compiled(start, x)
        (first,) = torch.autograd.grad(costs.square().mean(), start, create_graph=True)
        (second,) = torch.autograd.grad(first.sum(), start)
        found.append((costs, first, second, torch.rand(())))
    assert_same(found[1], found[0])


@pytest.mark.parametrize("name", ["tp", "mixed", "tp-target"])
def test_second_derivatives_of_weights_are_refused(name: str) -> None:
    _, inductor, start, x = warm(CHAIN[name])
    costs = inductor(start, x)
    with pytest.raises(EstimatorError, match=r"at site 'x\d' \(laws_and_estimators.py:\d+\): .*backend='eager'"):
        torch.autograd.grad(costs.mean(), start, create_graph=True)


def test_second_derivatives_of_bits() -> None:
    eager, inductor, start, x = warm("lr", bits)
    found = []
    for compiled in (eager, inductor):
        torch.manual_seed(5)
        (first,) = torch.autograd.grad(compiled(start, x).mean(), start, create_graph=True)
        found.append(torch.autograd.grad(first.square().sum(), start))
    assert_same(found[1], found[0])


def test_a_gradient_penalty_trains() -> None:
    """`backward` through a gradient, with leaves that accumulate."""
    eager, inductor, start, x = warm("rp")
    found = []
    for compiled in (eager, inductor):
        start.grad = None
        torch.manual_seed(5)
        costs = compiled(start, x)
        (first,) = torch.autograd.grad(costs.mean(), start, create_graph=True)
        (costs.mean() + first.square().sum()).backward()
        found.append([start.grad])
    assert_same(found[1], found[0])


def test_without_gradients() -> None:
    eager, inductor, start, x = warm()
    for around in (torch.no_grad, torch.inference_mode):
        for seed in range(3):
            found = []
            for compiled in (eager, inductor):
                torch.manual_seed(seed)
                with around():
                    found.append([compiled(start, x).clone()])
            assert not found[1][0].requires_grad
            assert_same(found[1], found[0])
    for seed in range(2):
        assert_same(step(inductor, (start, x), seed), step(eager, (start, x), seed))


def test_nothing_that_takes_a_gradient() -> None:
    eager, inductor = pair(costs_on_the_way, "lr")
    for seed in range(3):
        found = []
        for compiled in (eager, inductor):
            torch.manual_seed(seed)
            found.append([compiled(theta().detach(), rows(B))])
        assert not found[1][0].requires_grad
        assert_same(found[1], found[0])


def test_parameters_changed_in_place_before_backward() -> None:
    eager, inductor, start, x = warm()
    for compiled in (eager, inductor):
        loss = compiled(start, x).sum()
        with torch.no_grad():
            start.add_(0.0)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 5), nn.Linear(5, 2)
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        h = self.drop(torch.tanh(self.first(x)))
        z = propc.sample(Normal(self.second(h), 0.7), "z")
        return z.square().sum(-1) + torch.randn(len(x)) * h.sum(-1)


def test_modules() -> None:
    """In `train()` and `eval()`, with dropout and draws that are no sites, and parameters that are frozen."""
    for estimator in ("rp", "lr", "tp"):
        net = Net()
        eager, inductor = pair(net, estimator)
        for change in (lambda: None, net.eval, net.train, functools.partial(net.first.weight.requires_grad_, False)):
            for compiled in (net, eager, inductor):
                change()
                compiled.train(net.training)
            for seed in range(3):
                assert_same(step(inductor, (rows(B),), seed), step(eager, (rows(B),), seed))


def test_module_updates() -> None:
    """`load_state_dict` and optimizer steps are seen."""
    torch.manual_seed(0)
    nets = [Net(), Net()]
    nets[1].load_state_dict(nets[0].state_dict())
    eager, inductor = (
        propc.compile(net, estimator="tp", backend=name) for net, name in zip(nets, ("eager", "inductor"))
    )
    optimizers = [torch.optim.Adam(net.parameters(), lr=0.05) for net in nets]
    for seed in range(5):
        losses = []
        for compiled, optimizer in zip((eager, inductor), optimizers):
            torch.manual_seed(seed)
            optimizer.zero_grad()
            losses.append(compiled(rows(B)).mean())
            losses[-1].backward()
            optimizer.step()
        assert_same(losses[1:], losses[:1])
    assert_same(list(nets[1].parameters()), list(nets[0].parameters()))


class Convolved(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.table, self.out = nn.Conv2d(1, 2, 3), nn.Embedding(4, 3), nn.Linear(2 * 4 + 3, 2)

    def forward(self, images: Tensor, which: Tensor) -> Tensor:
        seen = self.conv(images).relu().flatten(1)
        p = self.out(torch.cat([seen, self.table(which)], -1))
        z = propc.sample(Bernoulli(logits=p), "z")
        y = propc.sample(Normal(p * z, 1.0), "y")
        return y.cos().sum(-1)


def test_layers() -> None:
    net = Convolved()
    inputs = rows(B, 16).reshape(B, 1, 4, 4), torch.arange(B) % 4
    for estimator in ("lr", {"z": "st", "y": "rp"}, {"z": "lr", "y": "tp"}):
        assert_agree(net, inputs, estimator)


class Normalized(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.out = nn.BatchNorm1d(3), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        z = propc.sample(Normal(self.out(self.norm(x)), 1.0), "z")
        return z.sin().sum(-1)


def test_batch_normalization_keeps_its_buffers() -> None:
    nets = [Normalized(), Normalized()]
    nets[1].load_state_dict(nets[0].state_dict())
    eager, inductor = (
        propc.compile(net, estimator="rp", backend=name) for net, name in zip(nets, ("eager", "inductor"))
    )
    for seed in range(4):
        assert_same(step(inductor, (rows(B) + seed,), seed), step(eager, (rows(B) + seed,), seed))
        assert_same([*nets[1].buffers()], [*nets[0].buffers()])
    for net in (*nets, eager, inductor):
        net.eval()
    for seed in range(3):
        assert_same(step(inductor, (rows(B),), seed), step(eager, (rows(B),), seed))
