"""Programs that many tests run, by name. What is random is theirs; tests choose the costs.

A program is a structure (`chain`, `rewards`) with the law of its steps, or one of the short ones at the end. Where
``sample`` is an argument, a test can pass what stands in for `propc.sample` in the same program in plain torch.
Errors name the line of a program: where they must name one of the test's file, the program stays there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Bernoulli, Distribution, Normal

import propc

Law = Callable[[Tensor], Distribution]
Scale = float | Tensor


def leaf(value: Any = 0.4) -> Tensor:
    """A parameter."""
    return torch.tensor(value, requires_grad=True)


# -- structures ---------------------------------------------------------------------------


def chain(law: Law, x: Tensor, steps: int, *, sample: Any = propc.sample, name: str = "x") -> Tensor:
    """Sites x0, x1, ..., each drawn from the one before it; the last draw.

    For what goes back along a path: a cost of the last draw reaches every site through all those behind it.
    """
    for t in range(steps):
        x = sample(law(x), f"{name}{t}")
    return x


def rewards(law: Law, reward: Callable[[Tensor], Tensor], x: Tensor, steps: int, discount: float = 1.0) -> Tensor:
    """A chain with a cost [batch] at every step; their sum.

    For routes and joins: each site hears of its own cost and of all later ones, and of none that is earlier.
    """
    total = torch.zeros(len(x))
    for t in range(steps):
        x = propc.sample(law(x), f"x{t}")
        total = total + (reward(x) if discount == 1 else discount**t * reward(x))
    return total


# -- laws of a step -----------------------------------------------------------------------


def autoregression(theta: Tensor, scale: Scale, link: Callable[[Tensor], Tensor] = torch.tanh) -> Law:
    """x′ ~ N(link(θ·x), scale). With the identity as link, E x_H = θᴴ·x_0."""
    return lambda x: Normal(link(theta * x), scale)


def sine_map(theta: Tensor, scale: Scale = 0.5) -> Law:
    """x′ ~ N(sin(θ + x), scale): where x is 0 at first, a parameter that every step adds again."""
    return lambda x: Normal(torch.sin(theta + x), scale)


def recurrent_unit(theta: Tensor, scale: Scale | Callable[[Tensor], Tensor]) -> Law:
    """x′ ~ N(tanh(θ₀·x + θ₁), scale): a recurrent network's weight and bias, each a parameter of its own."""
    return lambda x: Normal(torch.tanh(theta[0] * x + theta[1]), scale(x) if callable(scale) else scale)


def chaotic_rnn(beta: Tensor, weight: Tensor, scale: Scale = 0.001) -> Law:
    """x′ ~ N(σ(β·x W), scale): the gradient along a path grows without bound where β is large."""
    return lambda x: Normal(torch.sigmoid(beta * (x @ weight)), scale)


# -- short programs -----------------------------------------------------------------------


def unit_normal(theta: Tensor, batch: int, name: str = "x") -> Tensor:
    """x ~ N(θ, 1), [batch]. E x² = θ² + 1."""
    return propc.sample(Normal(theta.expand(batch), 1.0), name)


def bernoullis(theta: Tensor, batch: int, name: str = "z") -> Tensor:
    """Independent bits with logits θ [D], [batch, D]. E z = σ(θ)."""
    return propc.sample(Bernoulli(logits=theta.expand(batch, -1)), name)


def linear_gaussian(loc: Tensor, slope: Tensor, batch: int, sample: Any = propc.sample) -> tuple[Tensor, Tensor]:
    """x ~ N(loc, 1), y ~ N(slope·x, 1), [batch] each. E y = slope·loc, E y² = slope²·(loc² + 1) + 1."""
    x = sample(Normal(loc.expand(batch), 1.0), "x")
    return x, sample(Normal(slope * x, 1.0), "y")
