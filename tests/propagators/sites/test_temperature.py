"""Temperatures: numbers, and schedules that move while a program trains."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Bernoulli

import propc

THETA = torch.zeros(4, requires_grad=True)


def annealed(seen: list[int]) -> Any:
    def schedule(calls: int) -> float:
        seen.append(calls)
        return max(0.5, math.exp(-0.1 * calls))

    return propc.estimator("gumbel_softmax", temperature=schedule)


def program(theta: Tensor) -> Tensor:
    return propc.sample(Bernoulli(logits=theta), "z").square()


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.zeros(4))

    def forward(self) -> Tensor:
        return program(self.theta)


def test_a_schedule_gets_the_number_of_calls_so_far() -> None:
    seen: list[int] = []
    compiled = propc.compile(program, estimator=annealed(seen))
    for _ in range(3):
        compiled(THETA).mean().backward()
    assert seen == [0, 1, 2]


def test_the_schedule_is_what_the_draw_is_made_with() -> None:
    """The same seed at another temperature is the same draw of logistic noise, scaled."""
    compiled = propc.compile(
        lambda theta: propc.sample(Bernoulli(logits=theta), "z"),
        estimator=propc.estimator("gumbel_softmax", temperature=lambda calls: (1.0, 0.25)[calls]),
    )
    torch.manual_seed(3)
    warm = compiled(THETA)
    torch.manual_seed(3)
    cold = compiled(THETA)
    torch.testing.assert_close(torch.logit(cold), 4 * torch.logit(warm))


def test_it_stands_still_where_nothing_is_learned() -> None:
    seen: list[int] = []
    model = propc.compile(Model(), estimator=annealed(seen))
    with torch.no_grad():
        model()
    model()
    model()
    model.eval()
    model()
    with torch.no_grad():
        model()
    model.train()
    model()
    assert seen == [0, 0, 1, 1, 1, 2]


def test_a_failed_cost_does_not_move_it() -> None:
    """The program runs again to find what is not finite, at the same temperature."""
    seen: list[int] = []
    compiled = propc.compile(lambda theta, shift: (program(theta) + shift).log(), estimator=annealed(seen))
    compiled(THETA, torch.tensor(1.0))
    with pytest.raises(propc.NonFiniteError, match="cost"):
        compiled(THETA, torch.tensor(-2.0))
    assert seen == [0, 1, 1]


def test_the_count_is_saved_and_copied() -> None:
    first: list[int] = []
    model = propc.compile(Model(), estimator=annealed(first))
    model()
    model()
    saved = model.state_dict()
    assert all(isinstance(value, Tensor) for value in saved.values())
    for ready in (False, True):
        seen: list[int] = []
        fresh = propc.compile(Model(), estimator=annealed(seen))
        if ready:
            fresh()
        fresh.load_state_dict(saved)
        fresh()
        assert seen[-1] == 2
    copied = copy.deepcopy(model)
    copied()
    model()
    assert first == [0, 1, 2, 2]


def test_every_site_counts_its_own_calls() -> None:
    seen: list[int] = []

    def two(theta: Tensor) -> Tensor:
        return propc.sample(Bernoulli(logits=theta), "a") * propc.sample(Bernoulli(logits=theta), "b")

    compiled = propc.compile(two, estimator={"*": annealed(seen)})
    compiled(THETA)
    compiled(THETA)
    assert seen == [0, 0, 1, 1]


@pytest.mark.parametrize("noise", ["independent", "common"])
def test_a_call_counts_once_in_plates(noise: str) -> None:
    """Under common random numbers the site draws for one element of the plate after the other."""
    seen: list[int] = []

    def two(theta: Tensor) -> Tensor:
        first = propc.sample(Bernoulli(logits=theta), "first", estimator=propc.estimator("lr", samples=3, noise=noise))
        return propc.sample(Bernoulli(logits=theta + first), "z").square()

    compiled = propc.compile(two, estimator=annealed(seen))
    compiled(THETA).mean().backward()
    compiled(THETA).mean().backward()
    assert sorted(set(seen)) == [0, 1]
    assert seen == sorted(seen)


@pytest.mark.parametrize("name", ["gumbel_softmax", "st_gumbel", "gumbel_rao"])
@pytest.mark.parametrize("value", [0, -1.0, math.nan, math.inf])
def test_a_temperature_that_is_not_positive(name: str, value: float) -> None:
    with pytest.raises(propc.PropcValueError, match=r"temperature=.* must be positive and finite"):
        propc.estimator(name, temperature=value)


@pytest.mark.parametrize("name", ["gumbel_softmax", "st_gumbel", "gumbel_rao"])
@pytest.mark.parametrize("value", ["warm", None, True, torch.tensor(1.0)])
def test_no_temperature(name: str, value: Any) -> None:
    with pytest.raises(propc.PropcTypeError, match=r"temperature=.* is neither a number nor a function"):
        propc.estimator(name, temperature=value)


@pytest.mark.parametrize("name", ["gumbel_softmax", "st_gumbel", "gumbel_rao"])
def test_a_schedule_that_ends_at_zero(name: str) -> None:
    compiled = propc.compile(program, estimator=propc.estimator(name, temperature=lambda calls: 1.0 - calls))
    compiled(THETA)
    with pytest.raises(propc.PropcValueError, match=r"site 'z': option temperature=0.0 at call 1 must be positive"):
        compiled(THETA)


def test_a_schedule_that_gives_no_number() -> None:
    compiled = propc.compile(
        program, estimator=propc.estimator("st_gumbel", temperature=lambda calls: torch.tensor(1.0))
    )
    with pytest.raises(propc.PropcTypeError, match=r"site 'z': .* at call 0 is neither a number"):
        compiled(THETA)
