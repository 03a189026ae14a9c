"""Weights from a rehearsal of the reverse pass: against the formula by hand, and under other reverse passes."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
import zoo
from surrogate import gradients, seeded
from torch import Tensor
from torch.distributions import Gamma, Independent, Normal
from zoo import leaf

import propc
from propc.errors import EstimatorError, PropcValueError
from propc.passes import Checkpoint
from propc.runtime.weighting import mix

STEPS, BATCH, SIGMA = 4, 12, 0.3
THETA = [1.4, -0.3]


def rehearsed(**options: Any) -> Any:
    return propc.estimator("tp", weights="rehearsed", **options)


def recurrent(theta: Tensor, batch: int = BATCH) -> Tensor:
    start = torch.linspace(-1.0, 1.0, 2 * batch).reshape(batch, 2)
    return torch.cos(3 * zoo.chain(zoo.recurrent_unit(theta, SIGMA), start, STEPS)).sum(1)


def spread(grads: Tensor, folds: int) -> Tensor:
    """[batch, 2] → summed squared deviations in each group of rows, [folds]."""
    rows = grads.reshape(folds, -1, 2)
    return (rows - rows.mean(1, keepdim=True)).square().sum((1, 2))


def by_hand(theta: Tensor, folds: int) -> Tensor:
    """The gradient of the mean cost: own weights in one stream of cotangents, those of the next group in the other."""
    a, b = theta.detach()
    x, locs, noises, states = torch.linspace(-1.0, 1.0, 2 * BATCH).reshape(BATCH, 2), [], [], []
    for _ in range(STEPS):
        states.append(x)
        locs.append(torch.tanh(a * x + b))
        noises.append(torch.randn(BATCH, 2))
        x = locs[-1] + SIGMA * noises[-1]
    cost = torch.cos(3 * x).sum(1).reshape(folds, -1)
    size = cost.shape[1]
    message = (cost - cost.mean(1, keepdim=True)) * size / (size - 1) / BATCH
    own = taken = -3 * torch.sin(3 * x) / BATCH
    total = torch.zeros(2)
    for state, loc, noise in zip(reversed(states), reversed(locs), reversed(noises)):
        score = message.reshape(-1, 1) * noise / SIGMA
        weights = spread(own, folds) / (spread(own, folds) + spread(score, folds))
        each, next_one = (w.repeat_interleave(size)[:, None] for w in (weights, weights.roll(-1)))
        own, taken = torch.lerp(own, score, each), torch.lerp(taken, score, next_one)
        slope = 1 - loc.square()
        total += torch.stack([(taken * slope * state).sum(), (taken * slope).sum()])
        own, taken = own * slope * a, taken * slope * a
    return total


@pytest.fixture(params=["quick", "careful"])
def _how(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """In few operations for two parts, and without them, as on a GPU."""
    if request.param == "careful":
        monkeypatch.setattr(mix, "rehearse_two", lambda *args: None)


@pytest.mark.usefixtures("_how")
@pytest.mark.parametrize("folds", [2, 3])
@pytest.mark.parametrize("backend", ["eager", "inductor"])
def test_it_is_the_formula(backend: str, folds: int) -> None:
    compiled = propc.compile(recurrent, estimator=rehearsed(folds=folds), backend=backend)
    theta = leaf(THETA)
    for _ in range(2):
        (found,) = gradients(seeded(compiled, theta, seed=3).mean(), [theta])
    torch.manual_seed(3)
    torch.testing.assert_close(found, by_hand(theta, folds))


def test_it_differs_from_crossfit_along_a_chain_only() -> None:
    theta = leaf(THETA)

    def differs(steps: int) -> bool:
        def program(theta: Tensor) -> Tensor:
            x = torch.ones(BATCH, 2)
            for t in range(steps):
                x = propc.sample(Normal(torch.tanh(theta[0] * x), SIGMA), f"x{t}")
            return torch.cos(3 * x).sum(1)

        both = (rehearsed(), propc.estimator("tp", weights="crossfit"))
        one, other = (
            gradients(seeded(propc.compile(program, estimator=e), theta, seed=1).mean(), [theta]) for e in both
        )
        return not torch.allclose(one[0], other[0])

    assert [differs(steps) for steps in (1, 3)] == [False, True]


def several(theta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    x = propc.sample(Normal(theta[0].expand(BATCH), 0.5), "x")
    y = propc.sample(Independent(Gamma(torch.exp(theta).expand(BATCH, 2), torch.ones(2)), 1), "y")
    z = propc.sample(Normal(x * y[:, 0], torch.exp(theta[1] * x)), "z")
    return x.square(), torch.cos(z) + y.sum(1), theta.sum() * torch.ones(BATCH)


@pytest.mark.usefixtures("_how")
@pytest.mark.parametrize("options", [{}, {"per_coordinate": True}, {"target": "theta"}, {"baseline": None}], ids=str)
def test_several_costs_in_any_combination(options: dict[str, Any]) -> None:
    """Each reverse pass has a rehearsal of its own; one that runs again gives the same."""
    theta = leaf(THETA)
    costs = seeded(propc.compile(several, estimator=rehearsed(**options)), theta, seed=2)
    whole = costs[0].mean() - 2 * costs[1].mean() + costs[2].mean()
    first, again = (torch.autograd.grad(whole, theta, retain_graph=True)[0] for _ in range(2))
    torch.testing.assert_close(first, again)
    assert torch.isfinite(first).all()
    (alone,) = torch.autograd.grad(costs[2].mean(), theta, retain_graph=True)
    torch.testing.assert_close(alone, torch.ones(2))
    (of_one,) = gradients(costs[0].mean(), [theta])
    assert of_one[0] != 0
    assert of_one[1] == 0


def test_three_parts() -> None:
    estimator = propc.estimator(
        "combine", estimators=("rp", "lr", propc.estimator("lr", baseline=None)), weights="rehearsed"
    )
    theta = leaf(THETA)
    (found,) = gradients(seeded(propc.compile(recurrent, estimator=estimator), theta, seed=1).mean(), [theta])
    assert torch.isfinite(found).all()
    assert found.abs().sum() > 0


def test_a_scan() -> None:
    """Every step of a long scan notes its own weights, though all are one node."""

    def program(theta: Tensor, rolled: bool) -> Tensor:
        def step(x: Tensor) -> Tensor:
            return propc.sample(Normal(torch.tanh(theta[0] * x + theta[1]), SIGMA), "x")

        x = torch.linspace(-1.0, 1.0, 2 * BATCH).reshape(BATCH, 2)
        if rolled:
            return torch.cos(3 * propc.scan(step, x, 20)).sum(1)
        for t in range(20):
            x = propc.sample(Normal(torch.tanh(theta[0] * x + theta[1]), SIGMA), f"x{t}")
        return torch.cos(3 * x).sum(1)

    theta, compiled = leaf(THETA), propc.compile(program, estimator=rehearsed())
    found, expected = (gradients(seeded(compiled, theta, rolled, seed=1).mean(), [theta]) for rolled in (True, False))
    torch.testing.assert_close(found, expected)


def test_few_rows_are_weighed_evenly() -> None:
    theta = leaf(THETA)
    small = seeded(propc.compile(recurrent, estimator=rehearsed()), theta, 3, seed=1).mean()
    even = seeded(propc.compile(recurrent, estimator=propc.estimator("tp")), theta, 3, seed=1).mean()
    torch.testing.assert_close(gradients(small, [theta]), gradients(even, [theta]))


def test_other_estimators_beside_it() -> None:
    theta = leaf(THETA)
    mixed = propc.compile(recurrent, estimator={"x0": "lr", "x3": "rp", "*": rehearsed()})
    assert torch.isfinite(gradients(seeded(mixed, theta, seed=1).mean(), [theta])[0]).all()


def test_batched_cotangents() -> None:
    theta = leaf(THETA)
    cost = seeded(propc.compile(recurrent, estimator=rehearsed()), theta, seed=1)
    rows = torch.rand(3, BATCH)
    (found,) = torch.autograd.grad(cost, theta, rows, is_grads_batched=True, retain_graph=True)
    each = [torch.autograd.grad(cost, theta, row, retain_graph=True)[0] for row in rows]
    torch.testing.assert_close(found, torch.stack(each))


def test_nothing_stays_of_a_call_without_a_reverse_pass() -> None:
    compiled, theta = propc.compile(recurrent, estimator=rehearsed()), leaf(THETA)
    cost = compiled(theta)
    node = weakref.ref(cost)
    del cost
    gc.collect()
    assert node() is None
    with torch.no_grad():
        assert not compiled(theta).requires_grad


def test_a_failed_reverse_pass_poisons_nothing() -> None:
    compiled, theta = propc.compile(recurrent, estimator=rehearsed()), leaf(THETA)
    (expected,) = gradients(seeded(compiled, theta, seed=1).mean(), [theta])
    cost = seeded(compiled, theta, seed=1)
    with pytest.raises(RuntimeError, match="shape"):
        torch.autograd.grad(cost, theta, torch.ones(BATCH + 1))
    torch.testing.assert_close(gradients(cost.mean(), [theta])[0], expected)


def test_second_derivatives_are_refused() -> None:
    theta = leaf(THETA)
    cost = propc.compile(recurrent, estimator=rehearsed())(theta)
    with pytest.raises(EstimatorError, match="first derivatives only"):
        torch.autograd.grad(cost.mean(), theta, create_graph=True)


def test_blocks_that_run_again_are_refused() -> None:
    theta = leaf(THETA)
    cost = propc.compile(recurrent, estimator=rehearsed(), passes=[Checkpoint(blocks=2)])(theta)
    with pytest.raises(EstimatorError, match=r"(?s)site 'x.'.*zoo\.py.*reverse pass.*Checkpoint"):
        cost.mean().backward()


def test_options_that_exclude_it() -> None:
    with pytest.raises(PropcValueError, match="k_interval=2"):
        rehearsed(k_interval=2)
