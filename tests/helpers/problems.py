"""Discrete problems with exact gradients by enumeration, for the tests of every discrete estimator.

A program takes its parameters and ``batch``, as `stats.gradient_draws` wants it. Discrete sites are called ``z...``
and continuous ones ``x...``. The exact side is plain PyTorch in float64: a sum over all outcomes of their
probability times their cost, differentiated by autograd. Both sides share the objectives, nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import oracles
import torch
from oracles import expect_joint
from programs import vector
from torch import Tensor
from torch.distributions import Bernoulli, Categorical, Independent, Normal, OneHotCategorical
from torch.nn.functional import one_hot

import propc

sample = propc.sample
BERNOULLI, CATEGORICAL, ONE_HOT = (frozenset({name}) for name in ("bernoulli", "categorical", "one-hot"))


@dataclass(frozen=True)
class DiscreteProblem:
    """A program, where to test it, and its exact expected cost."""

    name: str
    program: Callable[..., Any]  # (*params, batch) -> costs [batch], or what `cost` takes
    params: tuple[Tensor, ...]
    expectation: Callable[..., Tensor]  # (*params) -> scalar, by enumeration
    families: frozenset[str]  # of the discrete sites: "bernoulli", "categorical", "one-hot"
    outcomes: int  # joint configurations of all discrete sites of one row
    differentiable: bool = True  # whether a gradient can reach every discrete sample from the cost
    cost: Callable[[Any], Tensor] = lambda returned: returned  # what the program returns -> one cost [batch]

    @property
    def exact(self) -> Tensor:
        """The exact gradient in all of ``params``, flattened and joined: [P]."""
        return oracles.gradient(self.expectation, *self.params)

    def __str__(self) -> str:
        return self.name


def probabilities(logits: Tensor) -> list[Tensor]:
    """Of Bernoullis with these logits [D]: D vectors (P(0), P(1))."""
    return [torch.stack([torch.sigmoid(-logit), torch.sigmoid(logit)]) for logit in logits]


def bernoullis(
    name: str, f: Callable[[Tensor], Tensor], theta: Sequence[float], *, by_probs: bool = False
) -> DiscreteProblem:
    """E[f(b)] of independent Bernoullis b [..., D] with logits θ."""

    def program(theta: Tensor, batch: int) -> Tensor:
        p = theta.expand(batch, -1)
        return f(sample(Bernoulli(probs=torch.sigmoid(p)) if by_probs else Bernoulli(logits=p), "z"))

    return DiscreteProblem(
        name,
        program,
        (vector(*theta),),
        lambda p: expect_joint(probabilities(p), lambda b: f(b.to(p.dtype))),
        BERNOULLI,
        2 ** len(theta),
    )


QUADRATIC = torch.tensor([[1.0, 0.5, -0.3], [0.5, -0.2, 0.7], [-0.3, 0.7, 0.4]], dtype=torch.float64)


def quadratic_and_sine(b: Tensor) -> Tensor:
    """bᵀCb + sin(b·(1, 2, 3)), of three Bernoullis."""
    return ((b @ QUADRATIC) * b).sum(-1) + torch.sin(b @ vector(1, 2, 3))


def wave(b: Tensor) -> Tensor:
    """Four Bernoullis, of every order."""
    return torch.cos(b @ vector(0.9, -1.4, 2.1, 0.6)) + torch.exp(b @ vector(0.4, 0.3, -0.5, 0.2))


def ripple(z: Tensor) -> Tensor:
    """Classes 0 to 9 in any number of dimensions [..., D]; no sum of functions of one of them."""
    level = z / 9
    slopes = vector(1.0, -0.6, 0.8, 0.5)[: z.shape[-1]]
    return torch.sin(3 * (level @ slopes)) + 2 * (level + 0.2).prod(-1)


def fixed_logits(*shape: int) -> Tensor:
    """Logits that differ from coordinate to coordinate, the same at every run."""
    return 0.8 * torch.sin(1.7 * torch.arange(1.0, 1 + math.prod(shape), dtype=torch.float64)).reshape(shape)


def categoricals(dims: int) -> DiscreteProblem:
    """Ten classes in each of ``dims`` dimensions."""

    def program(theta: Tensor, batch: int) -> Tensor:
        return ripple(sample(Categorical(logits=theta.expand(batch, dims, 10)), "z").to(theta.dtype))

    return DiscreteProblem(
        f"categorical-10-d{dims}",
        program,
        (fixed_logits(dims, 10),),
        lambda p: expect_joint(p.softmax(-1).unbind(), lambda z: ripple(z.to(p.dtype))),
        CATEGORICAL,
        10**dims,
    )


# Two sites; the second's logits depend on the first's sample.


def _after_first(z0: Tensor, z1: Tensor) -> Tensor:
    return torch.cos(z1 + 2 * z0) + z0 * z1


def _dependent(first: Tensor, second: Tensor, batch: int) -> Tensor:
    a, b = first.expand(batch, 1), second.expand(batch, 2, 3)
    z0 = sample(Bernoulli(logits=a[..., 0]), "z0")
    z1 = sample(Categorical(logits=b[..., 0, :] + z0[..., None] * b[..., 1, :]), "z1")
    return _after_first(z0, z1.to(a.dtype))


def _dependent_expectation(first: Tensor, second: Tensor) -> Tensor:
    def after(z0: float) -> Tensor:
        laws = [(second[0] + z0 * second[1]).softmax(-1)]
        return expect_joint(laws, lambda z: _after_first(vector(z0), z[:, 0].to(first.dtype)))

    p = torch.sigmoid(first[0])
    return (1 - p) * after(0.0) + p * after(1.0)


# A discrete site that chooses the component of a Normal.


def _component(logit: Tensor, loc: Tensor, batch: int) -> Tensor:
    p, m = logit.expand(batch, 1), loc.expand(batch, 2)
    z = sample(Bernoulli(logits=p[..., 0]), "z")
    x = sample(Normal(m[..., 0] + z * m[..., 1], 0.5 + z), "x")
    return torch.cos(2 * x) + 0.5 * x.square()


def _component_expectation(logit: Tensor, loc: Tensor) -> Tensor:
    """With x ~ N(m, s²): E cos 2x = exp(−2s²)·cos 2m, E x² = m² + s²."""

    def of(z: Tensor) -> Tensor:
        m, variance = loc[0] + z[:, 0] * loc[1], (0.5 + z[:, 0]).square()
        return torch.exp(-2 * variance) * torch.cos(2 * m) + 0.5 * (m.square() + variance)

    return expect_joint(probabilities(logit), of)


# Event dimensions.

EVENT = torch.tensor([[0.5, -0.9, 0.7], [1.2, 0.4, -0.6]], dtype=torch.float64)


def _event(theta: Tensor, batch: int) -> Tensor:
    z = sample(Independent(Bernoulli(logits=theta.expand(batch, 2, 3)), 2), "z")
    return _of_event(z)


def _of_event(z: Tensor) -> Tensor:
    return torch.cos(2 * (z * EVENT).sum((-1, -2))) + z.prod(-1).sum(-1)


# A parameter that is used before the site, and one that is used behind it alone.


def _downstream(logits: Tensor, weights: Tensor, batch: int) -> Tensor:
    p, w = logits.expand(batch, 2), weights.expand(batch, 2)
    return _of_downstream(p, w, sample(Bernoulli(logits=p), "z"))


def _of_downstream(p: Tensor, w: Tensor, z: Tensor) -> Tensor:
    return torch.sin((w * z).sum(-1) + 0.3) * w[..., 1] + z.sum(-1) * p[..., 0]


# Two costs that the user weighs 2 and −½; the first depends on one of two sites only.


def _two_costs(theta: Tensor, batch: int) -> tuple[Tensor, Tensor]:
    p = theta.expand(batch, 3)
    z0 = sample(Bernoulli(logits=p[..., 0]), "z0")
    early = propc.cost((z0 - 0.3).square(), "early")
    z1 = sample(Bernoulli(logits=p[..., 1] + p[..., 2] * z0), "z1")
    return early, propc.cost(torch.exp(z0 + z1), "late")


def _two_costs_expectation(p: Tensor) -> Tensor:
    total = torch.zeros_like(p[0])
    for z0, law in enumerate(probabilities(p[:1])[0]):
        late = expect_joint(probabilities(p[1:2] + p[2] * z0), lambda z1: torch.exp(z0 + z1[:, 0]))  # noqa: B023
        total = total + law * (2 * (z0 - 0.3) ** 2 - 0.5 * late)
    return total


# One-hot vectors, and integer classes that index a table.

CODES = torch.tensor([[0.2, -1.0, 0.5], [1.1, 0.3, -0.4], [-0.7, 0.8, 0.9], [0.4, 1.3, -1.2]], dtype=torch.float64)


def _of_codes(first: Tensor, second: Tensor) -> Tensor:
    """Of two rows of the table [..., 3]."""
    return torch.cos(first.sum(-1) + 0.5) * second.square().sum(-1) + (first * second).sum(-1)


def _one_hot(theta: Tensor, batch: int) -> Tensor:
    codes = sample(OneHotCategorical(logits=theta.expand(batch, 2, 4)), "z") @ CODES
    return _of_codes(codes[..., 0, :], codes[..., 1, :])


def _one_hot_expectation(theta: Tensor) -> Tensor:
    def of(z: Tensor) -> Tensor:
        first, second = (one_hot(z, 4).to(theta.dtype) @ CODES).unbind(1)
        return _of_codes(first, second)

    return expect_joint(theta.softmax(-1).unbind(), of)


def _by_index(theta: Tensor, table: Tensor, batch: int) -> Tensor:
    z = sample(Categorical(logits=theta.expand(batch, 2, 4)), "z")
    learned = table.expand(batch, 4).gather(-1, z)
    return _of_codes(CODES[z[..., 0]], CODES[z[..., 1]]) * learned.sum(-1)


def _by_index_expectation(theta: Tensor, table: Tensor) -> Tensor:
    return expect_joint(theta.softmax(-1).unbind(), lambda z: _of_codes(*CODES[z].unbind(1)) * table[z].sum(-1))


PROBLEMS = (
    bernoullis("toy-0.499", lambda b: (b[..., 0] - 0.499).square(), [0.0]),
    bernoullis("toy-0.2", lambda b: (b[..., 0] - 0.2).square(), [0.5]),
    bernoullis("three-bernoullis", quadratic_and_sine, [0.3, -1.2, 0.8]),
    bernoullis("four-bernoullis", wave, [0.4, -0.7, 0.2, 1.1], by_probs=True),
    categoricals(2),
    categoricals(3),
    categoricals(4),
    DiscreteProblem(
        "dependent",
        _dependent,
        (vector(0.4), torch.tensor([[0.2, -0.4, 0.5], [1.2, 0.3, -0.9]], dtype=torch.float64)),
        _dependent_expectation,
        BERNOULLI | CATEGORICAL,
        6,
    ),
    DiscreteProblem(
        "feeds-a-normal", _component, (vector(-0.3), vector(0.4, 1.3)), _component_expectation, BERNOULLI, 2
    ),
    DiscreteProblem(
        "event-dimensions",
        _event,
        (fixed_logits(2, 3),),
        lambda p: expect_joint(probabilities(p.flatten()), lambda z: _of_event(z.to(p.dtype).reshape(-1, 2, 3))),
        BERNOULLI,
        64,
    ),
    DiscreteProblem(
        "downstream-parameter",
        _downstream,
        (vector(0.6, -0.2), vector(0.7, 1.4)),
        lambda p, w: expect_joint(probabilities(p), lambda z: _of_downstream(p, w, z.to(p.dtype))),
        BERNOULLI,
        4,
    ),
    DiscreteProblem(
        "two-costs",
        _two_costs,
        (vector(0.3, -0.5, 0.9),),
        _two_costs_expectation,
        BERNOULLI,
        4,
        cost=lambda costs: 2 * costs[0] - 0.5 * costs[1],
    ),
    DiscreteProblem("one-hot", _one_hot, (fixed_logits(2, 4),), _one_hot_expectation, ONE_HOT, 16),
    DiscreteProblem(
        "by-index",
        _by_index,
        (fixed_logits(2, 4), vector(0.9, -0.4, 0.6, 1.2)),
        _by_index_expectation,
        CATEGORICAL,
        16,
        differentiable=False,
    ),
)
