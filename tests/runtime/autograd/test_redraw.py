"""Large draws are made again in the reverse pass: nothing changes but the memory."""

from __future__ import annotations

import pytest
import torch
import zoo
from surrogate import seeded
from torch import Tensor
from torch.distributions import Normal

import propc
from propc.runtime.autograd import redraw


def changing_scale(theta: Tensor) -> Tensor:
    start = torch.linspace(-1.0, 1.0, 40).reshape(8, 5)
    return torch.cos(zoo.chain(lambda x: Normal(torch.tanh(theta * x), torch.exp(0.1 * theta * x)), start, 3)).sum(1)


def both(order: int) -> tuple[Tensor, ...]:
    theta = torch.tensor(0.4, requires_grad=True)
    cost = seeded(propc.compile(changing_scale, estimator="tp"), theta, seed=3)
    (found,) = torch.autograd.grad(cost.mean(), theta, create_graph=order == 2)
    return (cost, found) if order == 1 else (cost, found, *torch.autograd.grad(found, theta))


@pytest.mark.parametrize("order", [1, 2])
def test_nothing_changes(order: int, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = both(order)
    monkeypatch.setattr(redraw, "LARGE", 0)
    state = torch.get_rng_state()
    again = both(order)
    for a, b in zip(kept, again):
        assert torch.equal(a, b)
    monkeypatch.undo()
    torch.set_rng_state(state)


def test_the_draw_is_not_held() -> None:
    """Of a large site only φ is saved."""
    loc = torch.randn(redraw.LARGE, 1, requires_grad=True)
    saved: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    compiled = propc.compile(
        lambda loc: propc.sample(Normal(loc, 1.0), "x").sum(1), estimator=propc.estimator("tp"), validate=False
    )
    compiled(loc)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        cost = compiled(loc)
    large = {t.data_ptr() for t in saved if t.numel() >= redraw.LARGE and t.dim() == 2 and t.stride() != (0, 0)}
    assert large <= {loc.data_ptr()}
    cost.mean().backward()
    assert loc.grad is not None
