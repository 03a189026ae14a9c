"""Small programs with known gradients: families, objectives, and the estimators to try on them.

Every program takes its parameters and ``batch``, and returns costs [batch]; a parameter may come
with a row of its own for each sample (see `stats.gradient_draws`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import oracles
import torch
from torch import Tensor
from torch.distributions import Bernoulli, Beta, Categorical, Distribution, Gamma, Normal

import propc


def vector(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


class Family(NamedTuple):
    """A law and the parameter vector to test it at."""

    law: Callable[[Tensor], Distribution]
    theta: tuple[float, ...]


CONTINUOUS = {
    "normal": Family(lambda p: Normal(p[..., 0], p[..., 1]), (0.4, 0.7)),
    "gamma": Family(lambda p: Gamma(p[..., 0], p[..., 1]), (2.5, 1.3)),
    "beta": Family(lambda p: Beta(p[..., 0], p[..., 1]), (1.8, 2.6)),
}
DISCRETE = {
    "bernoulli": Family(lambda p: Bernoulli(logits=p[..., 0]), (0.3,)),
    "categorical": Family(lambda p: Categorical(logits=p), (0.2, -0.4, 0.5)),
}
FAMILIES = CONTINUOUS | DISCRETE

OBJECTIVES: dict[str, Callable[[Tensor], Tensor]] = {
    "linear": lambda x: 3.0 * x,
    "quadratic": lambda x: (x - 0.1).square(),
    "exp": lambda x: torch.exp(-0.5 * x),
    "cos": lambda x: torch.cos(x + 0.4),
}


class Problem(NamedTuple):
    """A program of one parameter vector, where to test it, and its exact expected cost."""

    program: Callable[..., Any]
    theta: Tensor
    expectation: Callable[[Tensor], Tensor]

    @property
    def exact(self) -> Tensor:
        return oracles.gradient(self.expectation, self.theta)


def one_site(family: str, objective: str) -> Problem:
    """E[f(x)], x from the family, in all of the family's parameters."""
    law, theta = FAMILIES[family]
    f = OBJECTIVES[objective]

    def program(theta: Tensor, batch: int) -> Tensor:
        x = propc.sample(law(theta.expand(batch, -1)), "x")
        return f(x.to(theta.dtype))

    return Problem(program, vector(*theta), lambda p: oracles.expect(law(p), lambda x: f(x.to(p.dtype))))


def _recurrent(theta: Tensor, batch: int) -> Tensor:
    p = theta.expand(batch, -1)
    x = torch.full((batch,), 0.4, dtype=theta.dtype)
    for t in range(3):
        shift = propc.node(p[..., 1], f"shift{t}")
        x = propc.sample(Normal(torch.sin(p[..., 0] * x) + shift, 0.5), f"x{t}")
    return torch.cos(2 * x)


def _recurrent_expectation(p: Tensor) -> Tensor:
    def after(x: Tensor, steps: int) -> Tensor:
        if steps == 0:
            return torch.cos(2 * x)
        return oracles.expect(Normal(torch.sin(p[0] * x) + p[1], 0.5), lambda y: after(y, steps - 1))

    return after(torch.tensor(0.4, dtype=p.dtype), 3)


RECURRENT = Problem(_recurrent, vector(1.6, 0.3), _recurrent_expectation)
"""Three steps that share their parameters."""


def neighbour(costs: Tensor) -> Tensor:
    """A baseline that is noisy but right: each row's neighbour's cost."""
    return costs.roll(1)


def own_mean(costs: Tensor) -> Tensor:
    """A baseline that is wrong: the mean holds each row's own cost, and shrinks the gradient by 1/B."""
    return costs.mean()


BASELINES = {"loo": "loo", "moving_average": "moving_average", "none": None, "callable": neighbour}
