"""Whether rows meet is found for certain: by structure, else on draws that are forced to differ."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import (
    Bernoulli,
    Beta,
    Categorical,
    Distribution,
    Exponential,
    Geometric,
    Normal,
    OneHotCategorical,
    Poisson,
)
from torch.nn import functional

import propc
from propc.runtime.checks.changed_draws import LEVELS, _outcomes

Mix = Callable[[Tensor], Tensor]
ROWS = 4
SEEDS = range(8)
LAWS: dict[str, Callable[[Tensor], Distribution]] = {
    "Bernoulli": lambda theta: Bernoulli(logits=theta.expand(ROWS)),
    "Categorical": lambda theta: Categorical(logits=torch.stack([theta, -theta, 0 * theta]).expand(ROWS, 3)),
    "Poisson": lambda theta: Poisson(theta.exp().expand(ROWS)),
    "Geometric": lambda theta: Geometric(logits=theta.expand(ROWS)),
    "Normal": lambda theta: Normal(theta.expand(ROWS), 1.0),
    "Exponential": lambda theta: Exponential(theta.exp().expand(ROWS)),
    "Beta": lambda theta: Beta(theta.exp().expand(ROWS), 2.0),
}
MEET: dict[str, Mix] = {
    "product of neighbours": lambda x: x * x.roll(1, 0),
    "roll back": lambda x: x * x.roll(-1, 0),
    "of what is missing": lambda x: (x - 1) * (x.roll(2, 0) - 1),
    "one pair": lambda x: torch.stack([x[0], x[1], x[2] * x[3], x[3]]),
    "the other pair": lambda x: torch.cat([x[:3], x[3:] * x[1]]),
    "mean": lambda x: (x - x.mean()).square(),
    "largest": lambda x: x * 0 + x.max(),
    "smallest": lambda x: x * 0 + x.min(),
    "sorted": lambda x: x.sort().values,
    "running sum": lambda x: x.cumsum(0),
    "before": lambda x: functional.pad(x, (1, 0))[:-1],
    "flipped": lambda x: x.flip(0) * x,
    "softmax": lambda x: x.softmax(0),
    "outer product": lambda x: torch.outer(x, x).sum(1),
    "matrix": lambda x: x @ torch.arange(16.0).reshape(4, 4).to(x),
    "index": lambda x: x[torch.tensor([1, 0, 3, 2])],
    "written": lambda x: x.clone().index_copy_(0, torch.tensor([2]), x[:1]),
    "where": lambda x: torch.where(x.roll(1, 0) > 0.5, x, x * 0),
    "parity": lambda x: (x.round().sum() % 2) * x,
}
APART: dict[str, Mix] = {
    "elementwise": lambda x: x.sin() * 3 + (x > 0.5) * x,
    "there and back": lambda x: x.flip(0).exp().flip(0),
    "rolled back": lambda x: x.roll(1, 0).cos().roll(-1, 0),
    "eye": lambda x: torch.eye(4).to(x) @ x,
    "transposed": lambda x: (x.unsqueeze(0).expand(3, 4).T * torch.arange(3.0)).sum(1),
    "padded": lambda x: functional.pad(x, (0, 1))[:-1],
    "written": lambda x: x.clone().add_(1).mul_(x),
    "copied in": lambda x: torch.zeros(4).to(x).copy_(x),
    "index": lambda x: x[torch.tensor([3, 2, 1, 0])][torch.tensor([3, 2, 1, 0])],
    "sorted in a row": lambda x: torch.stack([x, x**2, 1 - x], 1).sort(1).values[:, 0],
    "outer diagonal": lambda x: torch.outer(x, x).diagonal(),
}


def call(law: Callable[[Tensor], Distribution], mix: Mix, estimator: Any = "lr", seed: int = 0) -> Any:
    torch.manual_seed(seed)
    program = propc.compile(lambda theta: mix(propc.sample(law(theta), "x").float()), estimator=estimator)
    return program(torch.tensor(0.4, requires_grad=True))


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("mix", MEET)
def test_rows_that_meet_are_found_whatever_was_drawn(law: str, mix: str) -> None:
    if law != "Bernoulli":
        with pytest.raises(propc.GraphError, match="mixes samples"):
            call(LAWS[law], MEET[mix])
        return
    for seed in SEEDS:
        with pytest.raises(propc.GraphError, match="mixes samples"):
            call(LAWS[law], MEET[mix], seed=seed)


@pytest.mark.parametrize("law", ["Bernoulli", "Normal"])
@pytest.mark.parametrize("mix", APART)
def test_rows_apart_are_never_refused(law: str, mix: str) -> None:
    for seed in range(5):
        assert call(LAWS[law], APART[mix], seed=seed).shape == (ROWS,)


@pytest.mark.parametrize("estimator", ["lr", "rloo", "local", "arm", "disarm", "mvd", "enumerate"])
def test_every_estimator(estimator: str) -> None:
    for seed in SEEDS:
        with pytest.raises(propc.GraphError, match="mixes samples"):
            call(LAWS["Bernoulli"], MEET["product of neighbours"], estimator, seed)


@pytest.mark.parametrize("columns", [1, 3])
def test_a_vector_of_weights_as_long_as_the_batch(columns: int) -> None:
    """Values and gradients are those of all its configurations, or it is refused."""
    data = torch.linspace(-1, 1, 9).reshape(3, 3)

    def program(logits: Tensor) -> Tensor:
        w = propc.sample(Bernoulli(logits=logits if columns == 3 else logits.unsqueeze(0)), "w")
        w = w if columns == 3 else w[0]
        return (data @ w).sin() + w[0]

    for estimator in ("enumerate", propc.estimator("infer", budget=100)):
        logits = torch.tensor([0.4, 0.1, -0.3], requires_grad=True)
        compiled = propc.compile(program, estimator=estimator)
        if columns == 3:
            with pytest.raises(propc.GraphError, match=r"cost 'cost'.*mixes samples.*shape \[1, ...\]"):
                compiled(logits)
            continue
        value, total = compiled(logits).sum(), torch.zeros(())
        for bits in torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 3):
            weight = Bernoulli(logits=logits).log_prob(bits).sum().exp()
            total = total + weight * ((data @ bits).sin() + bits[0]).sum()
        torch.testing.assert_close(value, total)
        torch.testing.assert_close(torch.autograd.grad(value, logits), torch.autograd.grad(total, logits))


def test_enumeration_beside_a_path() -> None:
    def program(theta: Tensor) -> Tensor:
        x = propc.sample(Normal(theta.expand(ROWS), 1.0), "x")
        z = propc.sample(Bernoulli(logits=x), "z", estimator="enumerate")
        return (z - z.mean()) * x

    with pytest.raises(propc.GraphError, match=r"cost 'cost'.*operation 'mean'.*test_rows_that_meet.py"):
        propc.compile(program, estimator={"x": "rp", "z": "enumerate"})(torch.tensor(0.4, requires_grad=True))


NOISY: dict[str, Mix] = {
    "poisson": lambda x: torch.poisson(x.exp() * 3),
    "binomial": lambda x: torch.binomial(torch.full_like(x, 9.0), x.sigmoid()),
    "rrelu": lambda x: functional.rrelu(x, training=True),
    "gamma": lambda x: torch.distributions.Gamma(x.exp(), 1.0).sample(),
    "bernoulli": lambda x: torch.empty_like(x).bernoulli_(x.sigmoid()),
    "dropout": lambda x: functional.dropout(x, 0.5),
    "several": lambda x: torch.poisson(x.exp()) + torch.randn_like(x) * torch.poisson(x.exp()),
    "wide": lambda x: torch.poisson(x.exp().expand(3, -1)).sum(0) + torch.rand(1),
}


@pytest.mark.parametrize("estimator", ["lr", propc.estimator("lr", samples=3)])
@pytest.mark.parametrize("noise", NOISY)
def test_operations_that_draw_as_their_inputs_say(noise: str, estimator: Any) -> None:
    """There and back: structure alone does not show that rows are apart."""
    if estimator != "lr" and noise in ("gamma", "bernoulli", "rrelu"):
        pytest.skip("torch.vmap cannot run it")
    mix = NOISY[noise]
    for seed in range(2):
        assert call(LAWS["Normal"], lambda x: mix(x.flip(0)).flip(0) + x, estimator, seed).shape == (ROWS,)
        if noise == "bernoulli":
            continue  # its noise may hide what moves
        with pytest.raises(propc.GraphError, match="mixes samples"):
            call(LAWS["Normal"], lambda x: mix(x).flip(0) * 10 + x, estimator, seed)
    with pytest.raises(propc.GraphError, match="mixes samples"):
        call(LAWS["Normal"], lambda x: mix(x.cumsum(0) * 3), estimator)


# -- draws forced to differ ------------------------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
def test_a_mix_that_only_a_third_outcome_shows(seed: int) -> None:
    """Batch statistics of one-hot draws, added up over the classes: of two classes they are the same for all rows."""
    torch.manual_seed(seed)

    @propc.compile(estimator="lr")
    def program(theta: Tensor) -> Tensor:
        x = propc.sample(OneHotCategorical(logits=torch.stack([theta, -theta, 0 * theta]).expand(8, 3)), "x")
        return functional.batch_norm(x, None, None, training=True).sum(-1)

    with pytest.raises(propc.PropcError, match=r"'batch_norm'.* mixes samples of the batch"):
        program(torch.tensor(0.3, requires_grad=True))


@pytest.mark.parametrize("inside", [(), (3,)], ids=["a value", "a vector"])
@pytest.mark.parametrize("place", range(7))
@pytest.mark.parametrize("count", range(2, 9))
def test_levels_show_at_least_three_outcomes(count: int, place: int, inside: tuple[int, ...]) -> None:
    """Whichever site it is, in each of its elements."""
    table = torch.arange(float(count))
    levels = _outcomes(torch.zeros(4, *inside), 0, table, place, LEVELS)
    shown = torch.stack(levels).flatten(1).T
    assert min(len(set(row.tolist())) for row in shown) >= min(count, 3)
