"""`rloo`: its variance is that of a U-statistic, which enumeration gives exactly."""

from __future__ import annotations

import pytest
import torch
from problems import PROBLEMS, fixed_logits, ripple
from stats import gradient_draws
from torch import Tensor
from torch.distributions import Categorical

import propc

pytestmark = pytest.mark.statistical

NAMED = {problem.name: problem for problem in PROBLEMS}


def exact_variance(logits: Tensor, samples: int) -> float:
    """Total variance of one estimate with K samples of classes by `logits` [d, C].

    The estimate is the U-statistic of h(x, y) = ½ (f(x) − f(y)) (s(x) − s(y)), with variance
    2/(K(K−1)) · (2 (K−2) Var E[h | x] + Var h) (Hoeffding 1948).
    """
    dims, classes = logits.shape
    z = torch.cartesian_prod(*[torch.arange(classes)] * dims)
    p = torch.stack([logits[j].softmax(-1)[z[:, j]] for j in range(dims)], 1).prod(1)
    score = torch.nn.functional.one_hot(z, classes).flatten(1) - logits.softmax(-1).flatten()
    f, size = ripple(z.to(logits.dtype)), score.square().sum(1)
    mean, length = p @ f, ((p * f) @ score).square().sum()
    whole = 2 * (p @ (f.square() * size) + (p @ f.square()) * (p @ size)) - 4 * mean * (p @ (f * size)) + 4 * length
    given_one = (p @ ((f - mean).square() * size) - length) / 4
    return (2 / (samples * (samples - 1)) * (2 * (samples - 2) * given_one + whole / 4 - length)).item()


@pytest.mark.parametrize("dims", [2, 3, 4])
def test_ten_classes(dims: int) -> None:
    problem = NAMED[f"categorical-10-d{dims}"]
    draws = gradient_draws(
        propc.compile(problem.program, estimator=propc.estimator("rloo", samples=4)), *problem.params, rows=50_000
    )
    exact = exact_variance(fixed_logits(dims, 10), 4)
    assert abs(draws.var(0).sum().item() / exact - 1) < 0.03
    assert abs(exact_variance(fixed_logits(dims, 10), 3) / exact - 1) > 0.2  # a sample less would show


@pytest.mark.parametrize(("name", "known"), [("toy-0.499", 4.2e-8), ("toy-0.2", 0.0046)])
def test_one_coin(name: str, known: float) -> None:
    """The figures of one estimate with four samples."""
    problem = NAMED[name]
    compiled = propc.compile(problem.program, estimator=propc.estimator("rloo", samples=4))
    found = gradient_draws(compiled, *problem.params, rows=100_000).var(0).item()
    assert abs(found / known - 1) < 0.05


def test_the_formula() -> None:
    """Against the estimate by hand."""
    logits = fixed_logits(2, 3)
    torch.manual_seed(0)
    z = Categorical(logits=logits).sample((200_000, 4))
    f, score = ripple(z.to(logits.dtype)), torch.nn.functional.one_hot(z, 3).flatten(2) - logits.softmax(-1).flatten()
    draws = ((f - f.mean(1, keepdim=True)).unsqueeze(-1) * score).sum(1) / 3
    assert abs(draws.var(0).sum().item() / exact_variance(logits, 4) - 1) < 0.02
