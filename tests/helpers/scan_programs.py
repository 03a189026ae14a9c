"""Steps of a loop, and the loop beside the scan: the numbers are the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Bernoulli, Normal

import propc
from propc.ir import Scan

BATCH = 6
LENGTH = 17  # longer than what is traced of a scan at first, shorter than what is traced at last
WEIGHTS = torch.linspace(0.5, 1.5, BATCH, dtype=torch.float64)

State = tuple[Tensor, ...]
Step = Callable[[Tensor, State, Callable[[str], str]], State]
Returned = Callable[[Tensor, State], Any]


def walk(theta: Tensor, state: State, name: Callable[[str], str]) -> State:
    """A cost at every step, added up in the state."""
    x, total = state
    x = propc.sample(Normal(torch.sin(theta[0] * x + theta[1]), 0.3), name("x"))
    return x, total + (x - theta[2]).square()


def late(theta: Tensor, state: State, name: Callable[[str], str]) -> State:
    """Costs that see the draws of earlier steps only."""
    x, total = state
    total = total + (x - theta[2]).square()
    return propc.sample(Normal(torch.sin(theta[0] * x + theta[1]), 0.3), name("x")), total


def window(theta: Tensor, state: State, name: Callable[[str], str]) -> State:
    """Costs that see the last three draws."""
    x, y, total = state
    z = propc.sample(Normal(theta[0].expand(BATCH), 0.3), name("x"))
    return z, x, total + (x * y * z - theta[1]).square()


def apart(theta: Tensor, state: State, name: Callable[[str], str]) -> State:
    """Two chains, of which one has costs."""
    x, y, total = state
    x = propc.sample(Normal(torch.sin(theta[0] * x), 0.3), name("x"))
    y = propc.sample(Normal(torch.cos(theta[1] * y), 0.3), name("y"))
    return x, y, total + theta[2] * y.square()


def cascade(theta: Tensor, state: State, name: Callable[[str], str]) -> State:
    """A chain that drives another one, a step later."""
    x, y, total = state
    y = propc.sample(Normal(torch.cos(theta[1] * y + x), 0.3), name("y"))
    x = propc.sample(Normal(torch.sin(theta[0] * x), 0.3), name("x"))
    return x, y, total + theta[2] * y.square()


def diamond(theta: Tensor, state: State, name: Callable[[str], str]) -> State:
    """Several sites in a step, two named costs, a jump."""
    x, total = state
    a = propc.sample(Normal(torch.sin(theta[0] * x), 0.3), name("a"))
    b = propc.sample(Bernoulli(logits=theta[1] * x), name("b"))
    x = propc.sample(Normal(a * b + theta[2], 0.5), name("x"))
    return x, propc.cost(a.square(), name("first")) + total + propc.cost(x * b, name("second"))


def register(theta: Tensor, state: State, name: Callable[[str], str]) -> State:
    """Costs that see the draw of three steps before."""
    w, x, y, total = state
    z = propc.sample(Normal(theta[0].expand(BATCH), 0.3), name("x"))
    return x, y, z, total + (w - theta[1]).square()


def whole(theta: Tensor, state: State) -> Tensor:
    return state[-1]


def last(theta: Tensor, state: State) -> Tensor:
    return (state[0] - 1).square() * theta[1]


def both(theta: Tensor, state: State) -> Tensor:
    return state[-1] + last(theta, state)


def pair(theta: Tensor, state: State) -> tuple[Tensor, Tensor]:
    return state[-1] / LENGTH, last(theta, state)


PARTS = {walk: 2, late: 2, window: 3, apart: 3, cascade: 3, diamond: 2, register: 4}


def program(step: Step, end: Returned, length: int, scanned: bool) -> Callable[[Tensor], Any]:
    """The loop, or the same as a scan."""

    def zeros() -> State:
        return tuple(torch.zeros(BATCH) for _ in range(PARTS.get(step, 2)))

    def loop(theta: Tensor) -> Any:
        state = zeros()
        for index in range(length):
            state = step(theta, state, lambda name, index=index: f"{name}{index}")  # type: ignore[misc]
        return end(theta, state)

    def scan(theta: Tensor) -> Any:
        return end(theta, propc.scan(lambda state: step(theta, state, lambda name: name), zeros(), length))

    return scan if scanned else loop


def run(compiled: Any, calls: int = 2) -> tuple[list[Tensor], Tensor]:
    """What a program returns and its gradient, from one seed, at the last of some calls."""
    torch.manual_seed(1)
    theta = torch.tensor([0.5, 0.3, 0.2], requires_grad=True)
    for _ in range(calls):
        found = compiled(theta)
    costs = list(found) if isinstance(found, tuple) else [found]
    total = sum(((i + 1) * (WEIGHTS * cost).sum() for i, cost in enumerate(costs)), torch.zeros(()))
    (gradient,) = torch.autograd.grad(total, theta)
    return [cost.detach() for cost in costs], gradient


def assert_same(step: Step, end: Returned, estimator: Any, length: int = LENGTH, **options: Any) -> Scan | None:
    """The scan has the numbers of the loop; its node, if it is one."""
    theta = torch.tensor([0.5, 0.3, 0.2], requires_grad=True)
    loop = propc.compile(program(step, end, length, scanned=False), estimator=estimator)
    scan = propc.compile(program(step, end, length, scanned=True), estimator=estimator, **options)
    (costs, gradient), (others, other) = run(loop), run(scan)
    for a, b in zip(costs, others):
        torch.testing.assert_close(b, a, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(other, gradient, rtol=1e-10, atol=1e-11)
    assert gradient.abs().sum() > 0
    found = scan.graph(theta).of(Scan)
    return found[0] if found else None
