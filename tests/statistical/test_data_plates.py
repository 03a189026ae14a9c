"""Plates that the user declares: unbiased against enumeration, and less noisy than without."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import oracles
import pytest
import torch
from programs import vector
from stats import (
    assert_less_variance,
    assert_rejected,
    assert_unbiased,
    check,
    gradient_draws,
    hessian_draws,
)
from torch import Tensor
from torch.distributions import Bernoulli, Independent, Normal

import propc
from propc import estimator, sample

pytestmark = pytest.mark.statistical

N = 3  # elements
THETA = vector(0.4, -0.6, 0.9)
WEIGHTS = vector(1.0, 2.0, -0.5)


def log_bernoulli(logit: Tensor, value: float) -> Tensor:
    return torch.nn.functional.logsigmoid(logit if value else -logit)


def enumerated(weigh: Callable[..., tuple[Tensor, Tensor]], bits: int) -> Callable[[Tensor], Tensor]:
    """E[cost], by (log-probability, cost) of every configuration of some bits."""

    def expectation(theta: Tensor) -> Tensor:
        total = theta.new_zeros(())
        for values in itertools.product((0.0, 1.0), repeat=bits):
            logp, cost = weigh(theta, *values)
            total = total + logp.exp() * cost
        return total

    return expectation


# Each program has a plate of N elements, if `plate` is one; `expectation` is its exact cost.


def flat(plate: Any = propc.plate) -> Callable[..., Tensor]:
    """Elements that have nothing to do with each other."""

    def program(theta: Tensor, batch: int) -> Tensor:
        with plate("data", dim=1):
            z = sample(Bernoulli(logits=theta.expand(batch, N)), "z")
            loss = torch.sin(z + WEIGHTS) * theta.expand(batch, N) + (z - 0.2).square()
            loss = propc.cost(loss, "loss") if plate is propc.plate else loss
        return loss.sum(1)

    return program


def flat_expectation(theta: Tensor) -> Tensor:
    p = torch.sigmoid(theta)
    return sum((w * (torch.sin(z + WEIGHTS) * theta + (z - 0.2) ** 2)).sum() for z, w in ((0.0, 1 - p), (1.0, p)))  # type: ignore[return-value]


def nested(theta: Tensor, batch: int) -> Tensor:
    """g outside, in front of z and x inside, h outside between z and x; costs inside and outside.

    The loss of element i depends on z of element j by way of h.
    """
    g = sample(Bernoulli(logits=theta[..., 0].expand(batch)), "g")
    with propc.plate("data", dim=1):
        z = sample(Bernoulli(logits=theta[..., 1:].expand(batch, 2) + g[:, None]), "z")
    h = sample(Bernoulli(logits=z.sum(1) - 1), "h")
    with propc.plate("data", dim=-1):
        x = sample(Bernoulli(logits=z - h[:, None] + theta[..., 1:].expand(batch, 2)), "x")
        loss = propc.cost((x + z + g[:, None]).square(), "loss")
    return 2 * loss.sum(1) - (z.sum(1) * h + x.prod(1)) + theta.expand(batch, N).sum(1)


def nested_weigh(
    theta: Tensor, g: float, z0: float, z1: float, h: float, x0: float, x1: float
) -> tuple[Tensor, Tensor]:
    logp = log_bernoulli(theta[0], g)
    logp = logp + log_bernoulli(theta[1] + g, z0) + log_bernoulli(theta[2] + g, z1)
    logp = logp + log_bernoulli(torch.tensor(z0 + z1 - 1, dtype=theta.dtype), h)
    logp = logp + log_bernoulli(z0 - h + theta[1], x0) + log_bernoulli(z1 - h + theta[2], x1)
    cost = 2 * ((x0 + z0 + g) ** 2 + (x1 + z1 + g) ** 2) - ((z0 + z1) * h + x0 * x1) + theta.sum()
    return logp, cost


def two_plates(theta: Tensor, batch: int) -> Tensor:
    """A site in both of two plates, one in the outer alone, costs in both and in the outer; a mask, and means."""
    with propc.plate("outer", dim=1):
        w = sample(Bernoulli(logits=theta[..., :2].expand(batch, 2)), "w")
        with propc.plate("inner", dim=2):
            z = sample(Bernoulli(logits=w[..., None] + theta.expand(batch, N)[:, None]), "z")
            fine = propc.cost((z - w[..., None]).square() * z.cos(), "fine")
        coarse = propc.cost(w * 0.7 + z[..., 0], "coarse")
    return (fine * WEIGHTS).sum((1, 2)) + coarse.mean(1)


def two_plates_weigh(theta: Tensor, *bits: float) -> tuple[Tensor, Tensor]:
    w, z = bits[:2], (bits[2:5], bits[5:8])
    logp = sum(log_bernoulli(theta[i], w[i]) for i in range(2))
    logp = logp + sum(log_bernoulli(w[i] + theta[j], z[i][j]) for i in range(2) for j in range(N))
    values = torch.tensor(z, dtype=theta.dtype)
    fine = (values - torch.tensor(w, dtype=theta.dtype)[:, None]).square() * values.cos() * WEIGHTS
    coarse = sum(w[i] * 0.7 + z[i][0] for i in range(2)) / 2
    return logp, fine.sum() + coarse  # type: ignore[return-value]


PROGRAMS = {
    "flat": (flat(), flat_expectation),
    "nested": (nested, enumerated(nested_weigh, 6)),
    "two plates": (two_plates, enumerated(two_plates_weigh, 8)),
}
ESTIMATORS = {
    "lr": "lr",
    "lr-none": estimator("lr", baseline=None),
    "lr-average": estimator("lr", baseline="moving_average"),
    "rloo-3": estimator("rloo", samples=3),
    "common": estimator("lr", samples=2, noise="common"),
    "infer": "infer",
    "local": "local",
    "disarm": "disarm",
    "mixed": {"z": "lr", "*": "enumerate"},
    "mixed-2": {"z": "enumerate", "*": estimator("lr", samples=2)},
}


@pytest.mark.parametrize("name", ESTIMATORS)
@pytest.mark.parametrize("program", PROGRAMS)
def test_unbiased(program: str, name: str) -> None:
    function, expectation = PROGRAMS[program]
    if program == "flat" and name.startswith("mixed"):
        return
    exact = oracles.gradient(expectation, THETA)
    draws = gradient_draws(propc.compile(function, estimator=ESTIMATORS[name]), THETA, rows=30_000)
    check(draws, exact, twin=1.3)


def test_what_would_be_biased_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss of element i depends on z of element j by way of h: sent to element i alone, it is missed at j."""
    monkeypatch.setattr("propc.passes.plates.elementwise_routes._through_outside", lambda *args: 0)
    exact = oracles.gradient(PROGRAMS["nested"][1], THETA)
    assert_rejected(gradient_draws(propc.compile(nested, estimator="lr"), THETA, rows=100_000), exact)


def test_less_variance() -> None:
    """An element does not hear the noise of the others."""
    exact = oracles.gradient(flat_expectation, THETA)
    inside, without = (
        gradient_draws(propc.compile(flat(plate), estimator=estimator("lr", baseline=None)), THETA, rows=50_000)
        for plate in (propc.plate, lambda *args, **options: nullcontext())
    )
    assert_unbiased(without, exact)
    assert_less_variance(inside, without, times=1.2)
    many = vector(*[0.1] * 20)

    def program(theta: Tensor, batch: int, plate: Any) -> Tensor:
        with plate("data", dim=1):
            z = sample(Normal(theta.expand(batch, 20), 1.0), "z")
            loss = z.square()
            return (propc.cost(loss) if plate is propc.plate else loss).sum(1)

    inside, without = (
        gradient_draws(lambda *a, batch: propc.compile(program, estimator="lr")(*a, batch, plate), many, rows=20_000)  # noqa: B023
        for plate in (propc.plate, lambda *args, **options: nullcontext())
    )
    assert_unbiased(inside, 2 * many)
    assert_less_variance(inside, without, times=3)


def test_events_and_other_dimensions_are_inside_an_element() -> None:
    def program(theta: Tensor, batch: int) -> Tensor:
        with propc.plate("data", dim=1):
            x = sample(Independent(Normal(theta.expand(batch, N)[:, None].expand(batch, 2, N), 1.0), 1), "x")
            y = sample(Normal(x, 0.5), "y")  # a dimension behind the plate
            loss = propc.cost((y.sin() * WEIGHTS).sum(-1) + y.prod(-1), "loss")
        return loss.sum(1)

    def expectation(theta: Tensor) -> Tensor:
        damped = torch.exp(torch.tensor(-(1 + 0.25) / 2, dtype=theta.dtype))
        return 2 * ((theta.sin() * damped * WEIGHTS).sum() + theta.prod())

    exact = oracles.gradient(expectation, THETA)
    for name in ("lr", "tp", estimator("rloo", samples=3)):
        check(gradient_draws(propc.compile(program, estimator=name), THETA, rows=100_000), exact, twin=1.4)


def test_the_batch_as_a_plate() -> None:
    """Rows of a plate at dim=0, and one number returned for all of them."""

    def program(theta: Tensor) -> Tensor:
        with propc.plate("data", dim=-1):
            z = sample(Bernoulli(logits=theta.expand(5, N).flatten()), "z")
            loss = propc.cost((z - 0.3).square(), "loss")
        return loss.sum()

    compiled = propc.compile(program, estimator="lr")
    torch.manual_seed(0)
    draws = []
    for _ in range(10_000):
        theta = THETA.clone().requires_grad_()
        draws.append(torch.autograd.grad(compiled(theta), theta)[0])
    exact = oracles.gradient(lambda theta: 5 * (torch.sigmoid(theta) * 0.4).sum(), THETA)
    check(torch.stack(draws), exact)


def test_second_derivatives() -> None:
    draws = hessian_draws(propc.compile(flat(), estimator="lr"), THETA, rows=100_000)
    check(draws, oracles.hessian(flat_expectation, THETA), twin=1.5)
