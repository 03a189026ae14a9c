"""The checks themselves, on estimators written by hand."""

from __future__ import annotations

import pytest
import torch
from stats import (
    assert_less_variance,
    assert_rejected,
    assert_same_variance,
    assert_unbiased,
    check,
    gradient_draws,
    hessian_draws,
    limit,
    standard_errors,
)
from torch import Tensor
from torch.distributions import Normal

pytestmark = pytest.mark.statistical


def by_hand(theta: Tensor, batch: int, own_sample: bool = False) -> Tensor:
    """E[x²], x ~ N(θ, 1), by score function with a mean as baseline, as a surrogate cost."""
    law = Normal(theta.expand(batch, -1)[..., 0], 1.0)
    x = law.sample()
    f = x.square()
    baseline = f.mean() if own_sample else (f.sum() - f) / (batch - 1)
    return (f - baseline) * law.log_prob(x)


THETA = torch.tensor([0.6], dtype=torch.float64)
EXACT = 2 * THETA


@pytest.mark.parametrize("shape", [{"rows": 200_000}, {"rows": 3, "calls": 3000}])
def test_a_correct_estimator_passes_and_a_scaled_one_does_not(shape: dict[str, int]) -> None:
    draws = gradient_draws(by_hand, THETA, **shape)
    assert draws.shape == (shape.get("calls", shape["rows"]), 1)
    assert_unbiased(draws, EXACT)
    with pytest.raises(AssertionError, match="standard errors"):
        assert_unbiased(1.2 * draws, EXACT)
    with pytest.raises(AssertionError, match="no power"):
        assert_rejected(draws, EXACT)


def test_small_batches_show_a_baseline_that_holds_its_own_sample() -> None:
    draws = gradient_draws(by_hand, THETA, rows=3, calls=3000)
    twin = gradient_draws(lambda theta, batch: by_hand(theta, batch, own_sample=True), THETA, rows=3, calls=3000)
    check(draws, EXACT, twin=twin)


def test_warmup_calls_are_not_counted() -> None:
    seen = []

    def program(theta: Tensor, batch: int) -> Tensor:
        seen.append(len(seen))
        return seen[-1] * theta.expand(batch, -1)[..., 0]

    assert gradient_draws(program, THETA, rows=2, calls=3, warmup=2).flatten().tolist() == [2.0, 3.0, 4.0]


def test_false_alarms_are_as_rare_as_said() -> None:
    trials = torch.randn(4000, 500, 2)
    alarms = sum(bool((standard_errors(t, torch.zeros(2)).abs() > limit(2, 0.05)).any()) for t in trials)
    assert 140 < alarms < 260  # 200 ± 4.4 standard deviations


def test_nan_is_neither_unbiased_nor_rejected() -> None:
    draws = torch.randn(100, 1)
    draws[3] = torch.nan
    for verdict in (assert_unbiased, assert_rejected):
        with pytest.raises(AssertionError, match="not finite"):
            verdict(draws, torch.ones(1))


def test_variances_are_compared() -> None:
    a, b = torch.randn(2, 100_000, 1)
    assert_same_variance(a, b)
    assert_less_variance(a, 1.1 * b)
    assert_less_variance(a, 2 * b, times=3.5)
    with pytest.raises(AssertionError):
        assert_same_variance(a, 1.1 * b)
    with pytest.raises(AssertionError):
        assert_less_variance(a, b)
    with pytest.raises(AssertionError):
        assert_less_variance(a, 2 * b, times=4.5)


def test_hessian_draws() -> None:
    def pathwise(theta: Tensor, batch: int) -> Tensor:
        p = theta.expand(batch, -1)
        x = p[..., 0] + p[..., 1] * torch.randn(batch)
        return x.square() * p[..., 1]

    theta = torch.tensor([0.6, 0.5])
    exact = torch.tensor([[2 * 0.5, 2 * 0.6], [2 * 0.6, 6 * 0.5]])  # E = m²s + s³
    check(hessian_draws(pathwise, theta), exact)
    check(hessian_draws(pathwise, theta, rows=10, calls=1000), exact, twin=1.2)
