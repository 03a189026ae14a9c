"""Checks of estimators in standard errors, and the draws they need.

A check says nothing unless it can fail: `check` also requires that a biased twin of the same
draws is rejected.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Normal


def limit(comparisons: int, failure_rate: float = 2e-5) -> float:
    """How many standard errors a correct estimate strays with this probability (two-sided)."""
    tail = torch.tensor(failure_rate / (2 * comparisons), dtype=torch.float64)
    return -Normal(tail.new_zeros(()), tail.new_ones(())).icdf(tail).item()


def standard_errors(draws: Tensor, exact: Tensor) -> Tensor:
    """How far the mean of ``draws`` [N, *param] is from ``exact`` [*param], in standard errors."""
    assert draws.shape[1:] == exact.shape, f"draws {tuple(draws.shape)}, exact {tuple(exact.shape)}"
    stderr = draws.std(0) / len(draws) ** 0.5
    return (draws.mean(0) - exact) / (stderr + 1e-9)


def assert_unbiased(draws: Tensor, exact: Tensor, *, failure_rate: float = 2e-5) -> None:
    """``draws`` [N, *param] are independent estimates whose mean is ``exact`` [*param]."""
    z = standard_errors(draws, exact)
    bound = limit(exact.numel(), failure_rate)
    assert torch.isfinite(draws).all(), "an estimate is not finite"
    assert (z.abs() <= bound).all(), (
        f"mean {draws.mean(0).tolist()}, exact {exact.tolist()}: "
        f"{[round(v, 1) for v in z.flatten().tolist()]} standard errors, limit {bound:.1f}"
    )


def assert_rejected(draws: Tensor, exact: Tensor, *, failure_rate: float = 2e-5) -> None:
    """``draws`` come from a biased twin, and `assert_unbiased` sees it."""
    assert torch.isfinite(draws).all(), "an estimate is not finite"
    z = standard_errors(draws, exact)
    bound = limit(exact.numel(), failure_rate)
    assert (z.abs() > bound).any(), (
        f"no power: a biased twin is only {z.abs().max():.1f} standard errors off, limit {bound:.1f}"
    )


def check(draws: Tensor, exact: Tensor, *, twin: float | Tensor = 1.05) -> None:
    """``draws`` are unbiased, and the same check rejects ``twin``: other draws, or these times a factor."""
    assert_unbiased(draws, exact)
    assert_rejected(twin if isinstance(twin, Tensor) else twin * draws, exact)


def _variance_gap(first: Tensor, second: Tensor) -> Tensor:
    """Var(first) − Var(second) of independent draws [N, *param], in standard errors."""
    one, two = ((draws - draws.mean(0)).square() for draws in (first, second))
    stderr = (one.var(0) / len(one) + two.var(0) / len(two)).sqrt()
    return (one.mean(0) - two.mean(0)) / (stderr + 1e-12)


def assert_same_variance(first: Tensor, second: Tensor, *, failure_rate: float = 2e-5) -> None:
    """Each coordinate has the same variance in both sets of draws, within sampling error."""
    gap = _variance_gap(first, second)
    assert (gap.abs() <= limit(gap.numel(), failure_rate)).all(), (
        f"variances {first.var(0).tolist()} and {second.var(0).tolist()} differ: "
        f"{[round(v, 1) for v in gap.flatten().tolist()]} standard errors"
    )


def assert_less_variance(first: Tensor, second: Tensor, *, times: float = 1.0, failure_rate: float = 2e-5) -> None:
    """In each coordinate, ``times`` · Var(first) < Var(second), beyond sampling error."""
    gap = _variance_gap(times**0.5 * first, second)
    assert (gap < -limit(gap.numel(), failure_rate)).all(), (
        f"variances {first.var(0).tolist()} (times {times}) and {second.var(0).tolist()}: "
        f"{[round(v, 1) for v in gap.flatten().tolist()]} standard errors"
    )


def gradient_draws(
    compiled: Callable[..., Any],
    *params: Tensor,
    rows: int = 200_000,
    calls: int = 1,
    warmup: int = 0,
    cost: Callable[[Any], Tensor] = lambda returned: returned,
    seed: int = 0,
) -> Tensor:
    """Independent gradient estimates of E[cost] in all ``params``, flattened and joined: [N, P].

    ``compiled(*params, batch=rows)`` returns costs [rows]; it begins with ``param.expand(batch, ...)``.

    With one call, every row has parameters of its own, so each row is a draw and N = rows. Rows
    that meet in a baseline or a weight are dependent only to order 1/rows. With several calls
    the parameters are shared as usual, each call's gradient of the mean cost is a draw, and
    N = calls: this is how effects of small batches are seen. ``warmup`` calls come before and
    are not counted. ``cost`` turns what the program returns into one cost [rows].
    """
    torch.manual_seed(seed)
    per_row = calls == 1
    draws = []
    for call in range(warmup + calls):
        leaves = [(p.expand(rows, *p.shape).clone() if per_row else p.clone()).requires_grad_() for p in params]
        total = cost(compiled(*leaves, batch=rows))
        assert total.shape == (rows,), f"costs are {tuple(total.shape)}, not {(rows,)}"
        grads = torch.autograd.grad(total.sum() if per_row else total.mean(), leaves)
        if call >= warmup:
            draws.append(torch.cat([g.reshape(rows if per_row else 1, -1) for g in grads], -1))
    return torch.cat(draws)


def hessian_draws(
    compiled: Callable[..., Any], param: Tensor, *, rows: int = 200_000, calls: int = 1, seed: int = 0
) -> Tensor:
    """Independent estimates [N, P, P] of the Hessian of E[cost] in ``param`` [P]; as `gradient_draws`."""
    torch.manual_seed(seed)
    per_row = calls == 1
    draws = []
    for _ in range(calls):
        leaf = (param.expand(rows, *param.shape).clone() if per_row else param.clone()).requires_grad_()
        costs = compiled(leaf, batch=rows)
        (gradient,) = torch.autograd.grad(costs.sum() if per_row else costs.mean(), leaf, create_graph=True)
        columns = [torch.autograd.grad(g.sum(), leaf, retain_graph=True)[0] for g in gradient.unbind(-1)]
        draws.append(torch.stack(columns, -2).reshape(-1, len(param), len(param)))
    return torch.cat(draws)
