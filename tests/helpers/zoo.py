"""Programs that many tests run, each by the structure that it has: tests say the laws and the costs."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.distributions import Distribution

import propc

Law = Callable[[Tensor], Distribution]


def chain(law: Law, x: Tensor, steps: int) -> Tensor:
    """Sites x0, x1, ..., each drawn from the one before it; the last draw.

    For what goes back along a path: a cost of the last draw reaches every site through all those behind it.
    """
    for t in range(steps):
        x = propc.sample(law(x), f"x{t}")
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
