"""The algebra of tokens, joins and costs, and what a step may and may not do."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import zoo
from surrogate import gradients, seeded
from torch import Tensor
from torch.autograd.function import BackwardCFunction
from torch.distributions import Bernoulli, Gamma, Independent, Normal
from torch.utils._python_dispatch import TorchDispatchMode

import propc
from propc.runtime.autograd.tokens import attach, guard, join, token

BATCH = 5


# The algebra.


def log_probs(theta: Tensor) -> list[Tensor]:
    """Three smooth functions [BATCH] of the parameters, standing for log-probabilities."""
    rows = torch.arange(1.0, BATCH + 1) / BATCH
    return [torch.sin(theta[0] * rows + theta[1]), theta.prod() * rows, torch.exp(theta[1] * rows) * theta[2]]


def derivatives(loss: Tensor, theta: Tensor, order: int) -> list[Tensor]:
    """Along a fixed direction, up to an order."""
    found, along = [], torch.tensor([0.3, -1.1, 0.7])
    for _ in range(order):
        (grad,) = torch.autograd.grad(loss, theta, create_graph=True)
        found.append(grad)
        loss = grad @ along
    return found


def cost_of(theta: Tensor) -> Tensor:
    return torch.cos(theta.sum() * torch.arange(1.0, BATCH + 1)) + 2


def test_token() -> None:
    """Zero forward; what arrives goes on to log p, at every order."""
    theta = torch.tensor([0.4, 0.8, -0.5], requires_grad=True)
    (logp, *_) = log_probs(theta)
    assert torch.equal(token(logp), torch.zeros(BATCH))
    reference = derivatives((logp * cost_of(theta).detach()).sum(), theta, 2)
    # A token times something is linear in log p, and zero where log p is a constant.
    found = derivatives((token(logp) * cost_of(theta).detach()).sum(), theta, 2)
    torch.testing.assert_close(found, reference)


def test_join() -> None:
    theta = torch.tensor([0.4, 0.8, -0.5], requires_grad=True)
    tokens = [token(p) for p in log_probs(theta)]
    weights = torch.rand(BATCH)
    assert torch.equal(join(tokens), torch.zeros(BATCH))
    assert join(tokens[:1]) is tokens[0]
    nested = join([join(tokens[:2]), tokens[2]])
    expected = derivatives((weights * torch.stack(log_probs(theta)).sum(0)).sum(), theta, 2)
    for joined in (join(tokens), nested):
        torch.testing.assert_close(derivatives((weights * joined).sum(), theta, 2), expected)


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("baselines", [(0.0,), (0.7,), (0.7, -0.2), (0.1, 0.2, 0.3)], ids=str)
def test_attach(baselines: tuple[float, ...], order: int) -> None:
    """L·exp(ΣT) − Σ_g b_g·(exp(T_g) − 1), T = log p − its value, under any weights."""
    theta = torch.tensor([0.4, 0.8, -0.5], requires_grad=True)
    cost, parts = cost_of(theta), log_probs(theta)[: len(baselines)]
    weights = torch.linspace(-1.0, 2.0, BATCH) * theta[1]
    centered = tuple(cost.detach() - b for b in baselines)
    found = attach(cost, centered, tuple(token(p) for p in parts))
    assert torch.equal(found, cost)
    shifts = [p - p.detach() for p in parts]
    expected = cost * torch.stack(shifts).sum(0).exp()
    expected = expected - torch.stack([b * (s.exp() - 1) for b, s in zip(baselines, shifts)]).sum(0)
    torch.testing.assert_close(
        derivatives((weights * found).sum(), theta, order), derivatives((weights * expected).sum(), theta, order)
    )


def test_attach_is_the_same_when_differentiated_once() -> None:
    """The quick first-order backward agrees with the one that can be differentiated again."""
    theta = torch.tensor([0.4, 0.8, -0.5], requires_grad=True)
    grads = []
    for create_graph in (False, True):
        cost = cost_of(theta)
        found = attach(cost, (cost.detach() - 0.3,), (token(log_probs(theta)[0]),))
        grads.append(torch.autograd.grad(found.sum(), theta, create_graph=create_graph)[0])
    torch.testing.assert_close(*grads)


def test_attach_to_a_cost_without_gradient() -> None:
    theta = torch.tensor([0.4, 0.8, -0.5], requires_grad=True)
    cost = cost_of(theta).detach()
    found = attach(cost, (cost,), (token(log_probs(theta)[0]),))
    torch.testing.assert_close(gradients(found.sum(), [theta]), gradients((cost * log_probs(theta)[0]).sum(), [theta]))


def test_writing_into_a_cost_leaves_its_message() -> None:
    """The cost that comes out is not the memory of the one that went in."""
    logp = torch.zeros(BATCH, requires_grad=True)
    cost = torch.arange(1.0, BATCH + 1)
    found = attach(cost, (cost.clone(),), (token(logp),))
    found += 1
    assert torch.equal(cost, torch.arange(1.0, BATCH + 1))
    assert torch.equal(torch.autograd.grad(found.sum(), logp)[0], cost)


def test_guard() -> None:
    x = torch.ones(3, requires_grad=True)
    value = guard(x, "['mean']", "'x', 'y'", "model.py:3")
    assert torch.equal(value, x)
    with pytest.raises(propc.PropcError, match=r"model.py:3.*\['mean'\].*'x', 'y'.*Compute the cost"):
        value.sum().backward()


def test_guard_of_a_compiled_function() -> None:
    def program(theta: Tensor) -> dict[str, Tensor]:
        x = propc.sample(Normal(theta.expand(BATCH, 2), 1.0), "x")
        return {"cost": x.square().sum(1), "draws": theta * x}

    theta = torch.tensor(0.5, requires_grad=True)
    returned = propc.compile(program, estimator="lr")(theta)
    with pytest.raises(propc.PropcError, match=r"\['draws'\].*'x'"):
        returned["draws"].sum().backward(retain_graph=True)
    returned["cost"].sum().backward()
    assert theta.grad is not None
    propc.compile(program, estimator="rp")(theta)["draws"].sum().backward()


# What a step may and may not do.


def rewards(theta: Tensor) -> Tensor:
    def law(x: Tensor) -> Normal:
        return Normal(torch.sin(theta + x), 0.5 + theta.square().expand(BATCH, 2))

    return zoo.rewards(law, lambda x: torch.cos(x).sum(1), torch.zeros(BATCH, 2), steps=4)


def families(theta: Tensor) -> Tensor:
    z = propc.sample(Bernoulli(logits=theta.expand(BATCH)), "z", estimator="lr")
    g = propc.sample(Gamma(torch.exp(theta + z), 1.0), "g")
    n = propc.sample(Independent(Normal(theta * g[:, None] * torch.ones(3), 0.5), 1), "n")
    return torch.cos(n).sum(1) + z * g


def nodes(*outputs: Tensor) -> Iterator[Any]:
    """All backward nodes behind some tensors."""
    pending, seen = [o.grad_fn for o in outputs], set()
    while pending:
        node = pending.pop()
        if node is not None and node not in seen:
            seen.add(node)
            yield node
            pending.extend(before for before, _ in node.next_functions)


ESTIMATORS: dict[str, Any] = {
    "rp": "rp",
    "lr": "lr",
    "lr-moving": propc.estimator("lr", baseline="moving_average"),
    "lr-none": propc.estimator("lr", baseline=None),
    "lr-callable": propc.estimator("lr", baseline=lambda cost: cost.roll(1)),
    "tp": "tp",
    "tp-same": propc.estimator("tp", weights="same"),
    "tp-past": propc.estimator("tp", weights="past"),
    "tp-coordinate": propc.estimator("tp", per_coordinate=True),
    "tp-interval": propc.estimator("tp", k_interval=2),
    "tp-target": propc.estimator("tp", target="theta"),
    "combine": propc.estimator("combine", estimators=("rp", "lr", propc.estimator("lr", baseline=None))),
}
PROGRAMS = pytest.mark.parametrize("program", [rewards, families], ids=lambda p: p.__name__)
EVERY = pytest.mark.parametrize("estimator", ESTIMATORS.values(), ids=ESTIMATORS)


def test_rp_cuts_nothing() -> None:
    """No autograd function of propc's, and no more nodes than plain PyTorch, once the first call has been looked at."""
    theta = torch.tensor(0.5, requires_grad=True)
    compiled, plain = propc.compile(rewards, estimator="rp"), rewards(theta)
    compiled(theta)
    found = list(nodes(compiled(theta)))
    assert not [n for n in found if isinstance(n, BackwardCFunction)]
    assert len(found) <= len(list(nodes(plain)))
    assert any(isinstance(n, BackwardCFunction) for n in nodes(propc.compile(rewards, estimator="tp")(theta)))


@PROGRAMS
@EVERY
def test_one_engine_call(program: Callable[..., Tensor], estimator: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The user's backward is the only one: no call of the engine before it or inside it."""
    theta = torch.tensor(0.5, requires_grad=True)
    compiled = propc.compile(program, estimator=estimator)
    compiled(theta).sum().backward()
    calls = []
    run = torch.autograd.graph._engine_run_backward

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(args)
        return run(*args, **kwargs)

    for module in (torch.autograd, torch.autograd.graph):
        monkeypatch.setattr(module, "_engine_run_backward", counted)
    cost = compiled(theta)
    assert not calls
    cost.sum().backward()
    assert len(calls) == 1


def test_waiting_is_seen() -> None:
    with pytest.raises(AssertionError, match="waits"), NoWaiting():
        torch.ones(()).item()


class NoWaiting(TorchDispatchMode):
    """Refuses whatever makes the host wait for a device."""

    FORBIDDEN = ("_local_scalar_dense", "is_nonzero", "item", "nonzero", "equal", "masked_select", "_unique2")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket.__name__ in self.FORBIDDEN:
            raise AssertionError(f"{func} waits for the device")
        return func(*args, **(kwargs or {}))


@PROGRAMS
@EVERY
def test_a_step_does_not_wait(program: Callable[..., Tensor], estimator: Any) -> None:
    theta = torch.tensor(0.5, requires_grad=True)
    compiled = propc.compile(program, estimator=estimator, validate=False)
    compiled(theta).mean().backward()
    with NoWaiting():
        compiled(theta).mean().backward()


@PROGRAMS
@EVERY
def test_backward_twice(program: Callable[..., Tensor], estimator: Any) -> None:
    """With retain_graph a second backward gives the same; a forward without backward changes nothing."""
    theta = torch.tensor(0.5, requires_grad=True)
    compiled = propc.compile(program, estimator=estimator)
    cost = seeded(compiled, theta)
    first = torch.autograd.grad(cost.sum(), theta, retain_graph=True)
    if "past" not in str(estimator) and "interval" not in str(estimator):
        torch.testing.assert_close(torch.autograd.grad(cost.sum(), theta), first)
    other = propc.compile(program, estimator=estimator)
    seeded(other, theta)
    if "moving" not in str(estimator).lower():
        torch.testing.assert_close(torch.autograd.grad(seeded(other, theta).sum(), theta), first)


@EVERY
def test_nothing_is_kept(estimator: Any) -> None:
    """After a call whose result is dropped, its tensors are gone, also without backward."""
    theta = torch.tensor(0.5, requires_grad=True)
    compiled = propc.compile(rewards, estimator=estimator)
    compiled(theta).sum().backward()

    gc.collect()
    gc.freeze()
    try:
        for _ in range(3):
            compiled(theta)
        gc.collect()
        assert not [o for o in gc.get_objects() if type(o) is Tensor]
    finally:
        gc.unfreeze()
