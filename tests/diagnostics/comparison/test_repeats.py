"""How many gradients a comparison takes, and the bias that it could have missed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal

import propc
from propc.diagnostics.comparison.power import Limits, limit
from propc.diagnostics.comparison.repeats import FIRST, MOST, Repeats

ROWS = 100


def gauss(theta: Tensor) -> Tensor:
    return propc.sample(Normal(theta.expand(ROWS, 2), 1.0), "x").square().sum(-1)


def point() -> Tensor:
    return torch.tensor([0.6, 1.2], requires_grad=True)


@pytest.mark.parametrize(("given", "share"), [("5%", 0.05), (" 0.5 % ", 0.005), ("100%", 1.0), (".5%", 0.005)])
def test_percentages(given: str, share: float) -> None:
    assert Repeats.of(given) == Repeats(share=pytest.approx(share))


@pytest.mark.parametrize("given", ["5", "five%", "-5%", "0%", "101%", "%", "", "nan%", "1e1%"])
def test_strings_that_are_none(given: str) -> None:
    with pytest.raises(propc.PropcValueError, match=r"is no percentage from 0% to 100%. Give .* repeats=\"5%\""):
        propc.compare(gauss, point(), estimators=["rp"], repeats=given)


@pytest.mark.parametrize("given", [None, [5], True])
def test_what_is_neither(given: Any) -> None:
    with pytest.raises(propc.PropcTypeError, match=r"repeats=.*Give a number of gradients, or the bias to be seen"):
        propc.compare(gauss, point(), estimators=["rp"], repeats=given)


@pytest.mark.statistical
def test_as_many_as_it_takes() -> None:
    """Of rp a gradient has a variance of 4/ROWS a coordinate: the number can be computed."""
    found = propc.compare(gauss, point(), estimators=["rp"], repeats="5%", reference=2 * point().detach())
    limits = Limits.of(2, found.repeats)
    needed = (limits.seen * (4 / ROWS) ** 0.5 / (0.05 * 2.4)) ** 2
    assert needed < 1.25 * found.repeats
    assert found.repeats < 1.5 * needed
    row = found["rp"]
    assert 0.03 < row["missed_share"] <= 0.05
    assert row["missed"] == pytest.approx(2.4 * row["missed_share"])
    assert row["error"] == ""
    assert "could miss" in str(found)
    fewer = propc.compare(gauss, point(), estimators=["rp"], repeats="40%", reference=2 * point().detach())
    assert fewer.repeats == FIRST


@pytest.mark.slow
@pytest.mark.statistical
def test_a_bias_of_the_size_that_is_named_is_found() -> None:
    """Right estimators pass, and a gradient that is 20% too large is found in 99 of 100: of 25 in 23 at least."""
    theta, compiled = point(), propc.compile(gauss)
    too_large = propc.estimator("lr", baseline=lambda costs: -0.2 * costs)
    plain = propc.estimator("lr", baseline=None)
    found = [
        propc.compare(
            compiled, theta, estimators=[plain, too_large], repeats="20%", reference=2 * theta.detach(), seed=seed
        )
        for seed in range(25)
    ]
    assert sum(each.rows[0]["significant"] for each in found) <= 3
    assert sum(each.rows[1]["significant"] for each in found) >= 23


def test_the_most() -> None:
    """What noise hides is not waited for, and said."""
    theta = torch.tensor([1e-4, 0.0], requires_grad=True)
    found = propc.compare(gauss, theta, estimators=["rp"], repeats="1%", reference=2 * theta.detach())
    assert found.repeats == FIRST
    assert "a bias of 1% needs some" in found["rp"]["error"]
    assert found["rp"]["error"].endswith("10,000 are the most")
    zero = torch.zeros(2, requires_grad=True)
    found = propc.compare(gauss, zero, estimators=["rp"], repeats="1%", reference=torch.zeros(2))
    assert "a bias of 1% of a gradient of 0 is nothing" in str(found)
    assert found["rp"]["missed"] > 0


def test_how_many_next() -> None:
    wanted = Repeats(share=0.05)

    def after(count: int, *shares: float) -> int:
        return wanted.next(count, [{"missed_share": share} for share in shares])

    assert after(50, 0.05) == 50
    assert after(50, 0.04, float("nan")) == 50
    assert after(50, 0.06) == 76  # 50 · 1.2² · 1.05
    assert after(50, 0.5) == 200
    assert after(5000, 0.12) == MOST
    assert after(MOST, 0.06) == MOST
    assert after(50, float("inf"), 0.06) == 76  # what is hopeless is not waited for
    assert Repeats(30).next(30, [{"missed_share": 0.5}]) == 30


def test_limits() -> None:
    assert Limits.of(3, 50).chance == limit(3, 50)
    many = Limits.of(1, 10**6)
    assert many.seen == pytest.approx(2.5758 + 2.3263, abs=1e-3)
    assert limit(1, 10**6, 1e-4) == pytest.approx(3.8906, abs=1e-3)
