"""Every discrete estimator on every discrete problem that it takes, against enumeration.

An unbiased estimator joins by a line in `ESTIMATORS`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from problems import PROBLEMS, DiscreteProblem
from stats import assert_rejected, check, gradient_draws
from torch import Tensor

import propc

pytestmark = pytest.mark.statistical


@dataclass(frozen=True)
class Entry:
    """An unbiased estimator of discrete sites, and how to draw from it."""

    estimator: Any
    takes: Callable[[DiscreteProblem], bool] = lambda problem: True
    evaluations: Callable[[DiscreteProblem], int] = lambda problem: 1  # of the cost, for one row
    twin: float = 1.1  # a factor on the gradient that the check must see

    def rows(self, problem: DiscreteProblem) -> int:
        """As many as keep a test short; an exact estimator of many outcomes needs few."""
        return min(50_000, 500_000 // self.evaluations(problem))

    def compiled(self, problem: DiscreteProblem) -> Any:
        """The program with this estimator at its discrete sites, and `infer` at others."""
        return propc.compile(problem.program, estimator={"z*": self.estimator})


ESTIMATORS = {
    "reinmax": Entry("reinmax", lambda problem: problem.name == "toy-0.2"),  # exact on quadratics
    "lr": Entry("lr"),
    "lr-none": Entry(propc.estimator("lr", baseline=None), lambda problem: problem.name != "toy-0.499", twin=1.2),
    "lr-3": Entry(
        propc.estimator("lr", samples=3, baseline="moving_average"),
        lambda problem: problem.name != "toy-0.499",
        evaluations=lambda problem: 3,
    ),
    "rloo": Entry(propc.estimator("rloo", samples=4), evaluations=lambda problem: 4),
    "rloo-common": Entry(propc.estimator("rloo", samples=2, noise="common"), evaluations=lambda problem: 2),
    "local": Entry("local", evaluations=lambda problem: 20),
    "mvd": Entry("mvd", evaluations=lambda problem: 20),
    "arm": Entry("arm", evaluations=lambda problem: 2, twin=1.15),
    "disarm": Entry("disarm", evaluations=lambda problem: 2),
    "disarm-3": Entry(propc.estimator("disarm", samples=3, noise="common"), evaluations=lambda problem: 6),
    "infer-8": Entry(propc.estimator("infer", budget=8), evaluations=lambda problem: 8),
    "enumerate": Entry("enumerate", evaluations=lambda problem: problem.outcomes),
}
CASES = [(name, problem) for problem in PROBLEMS for name, entry in ESTIMATORS.items() if entry.takes(problem)]
each_case = pytest.mark.parametrize(("name", "problem"), CASES, ids=str)


@each_case
def test_unbiased(name: str, problem: DiscreteProblem) -> None:
    """A factor is seen, and so is the loss of the gradient of any parameter."""
    entry = ESTIMATORS[name]
    draws = gradient_draws(entry.compiled(problem), *problem.params, rows=entry.rows(problem), cost=problem.cost)
    check(draws, problem.exact, twin=entry.twin)
    for twin in without_a_parameter(draws, problem):
        assert_rejected(twin, problem.exact)


@each_case
def test_the_value_is_the_cost(name: str, problem: DiscreteProblem) -> None:
    entry = ESTIMATORS[name]
    with torch.no_grad():
        costs = problem.cost(entry.compiled(problem)(*problem.params, batch=entry.rows(problem)))
    exact = problem.expectation(*problem.params).reshape(1)
    check(costs[:, None], exact, twin=costs[:, None] + 0.2)


def without_a_parameter(draws: Tensor, problem: DiscreteProblem) -> list[Tensor]:
    """The draws with the gradient of one parameter after another lost."""
    parts = draws.split([p.numel() for p in problem.params], -1)
    return [torch.cat([part * (i != lost) for i, part in enumerate(parts)], -1) for lost in range(len(parts))]
