"""Propagators of users: score functions written by hand or composed are unbiased, and a wrong one is seen."""

from __future__ import annotations

from typing import Any

import pytest
from programs import one_site
from stats import assert_rejected, assert_unbiased, check, gradient_draws
from torch import Tensor

import propc
from propc import Field, Message, NodeView, Propagator
from propc.propagators import Chain, Sequence

pytestmark = pytest.mark.statistical


class Score(Propagator):
    """The score function by hand; `off` is what is wrong with it."""

    def __init__(self, off: float = 0.0) -> None:
        self.off = off

    def forward(self, node: NodeView, message: Message) -> Message:
        node.value = node.distribution.sample()
        node.memory.score = node.distribution.log_prob(node.value)
        return message

    def backward(self, node: NodeView, message: Message) -> Message:
        return node.pull(node.memory.score, message.cost + self.off * message.cost.square())


class Talking(Score):
    """The same where autograd does not carry the messages."""

    sends = (*Propagator.sends, Field("size", "list"))

    def backward(self, node: NodeView, message: Message) -> Message:
        return super().backward(node, message).replace(size=message.cost.square().mean())


@pytest.mark.parametrize("rule", [Score, Talking])
@pytest.mark.parametrize("family", ["normal", "gamma", "bernoulli", "categorical"])
def test_a_score_function_by_hand(family: str, rule: Any) -> None:
    problem = one_site(family, "cos")
    draws, wrong = (
        gradient_draws(propc.compile(problem.program, estimator=rule(off)), problem.theta, rows=100_000)
        for off in (0.0, 0.3)
    )
    check(draws, problem.exact, twin=wrong)


def wrong_mean(costs: Tensor) -> Tensor:
    """A baseline that sees the very cost that it is subtracted from."""
    return 0.2 * costs


@pytest.mark.parametrize("whole", [Sequence, Chain])
@pytest.mark.parametrize("baseline", ["loo", "moving_average"])
def test_score_and_baseline(whole: Any, baseline: str) -> None:
    """With few rows in a call, where a baseline that is wrong by 1/B shows."""
    problem = one_site("normal", "quadratic")
    rule = whole(score="lr", baseline="baseline")
    right = rule.configure(baseline={"baseline": baseline})
    wrong = rule.configure(baseline={"baseline": wrong_mean})
    draws = gradient_draws(propc.compile(problem.program, estimator=right), problem.theta, rows=50_000, warmup=1)
    assert_unbiased(draws, problem.exact)
    assert_rejected(
        gradient_draws(propc.compile(problem.program, estimator=wrong), problem.theta, rows=50_000), problem.exact
    )


def others(costs: Tensor) -> Tensor:
    """The mean of the seven other costs in groups of eight."""
    groups = costs.reshape(-1, 8)
    return ((groups.sum(1, keepdim=True) - groups) / 7).flatten()


def all_eight(costs: Tensor) -> Tensor:
    """The mean of all eight, each row's own among them: the gradient is an eighth too small."""
    return costs.reshape(-1, 8).mean(1).repeat_interleave(8)


@pytest.mark.parametrize("family", ["normal", "bernoulli"])
def test_small_groups(family: str) -> None:
    problem = one_site(family, "quadratic")

    def draws(baseline: Any) -> Tensor:
        rule = Sequence(score="lr", baseline=propc.propagator("baseline", baseline=baseline))
        return gradient_draws(propc.compile(problem.program, estimator=rule), problem.theta, rows=80_000)

    check(draws(others), problem.exact, twin=draws(all_eight))
