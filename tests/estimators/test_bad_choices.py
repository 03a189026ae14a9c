"""Estimators where they cannot work, and choices that are misspelt or of the wrong kind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from mistakes import B, normal, refused, run
from torch import Tensor, nn
from torch.distributions import Bernoulli, Normal
from zoo import leaf

import propc

pytestmark = pytest.mark.usefixtures("nothing_is_lost")


def test_estimators_that_cannot_work_at_a_site() -> None:
    def coin(theta: Tensor) -> Tensor:
        return propc.sample(Bernoulli(logits=theta.expand(B)), "coin")

    for estimator, name in (("rp", "rp"), ("tp", "tp"), (propc.Combine(("rp", "lr")), "rp")):
        refused(
            propc.EstimatorError,
            run(coin, estimator=estimator),
            "site 'coin'",
            f"estimator {name!r}",
            "Bernoulli",
            "rsample",
            "estimator='lr'",
            program=coin,
            at="sample",
        )

    def compared(theta: Tensor) -> Tensor:
        x = normal(theta, "z")
        return (x > 0).double()

    refused(
        propc.EstimatorError,
        run(compared, estimator="rp"),
        "site 'z'",
        "differentiable path",
        "'lr'",
        program=normal,
        at="sample",
    )

    def boxed(theta: Tensor) -> Tensor:
        return propc.opaque(torch.square)(normal(theta, "z"))

    refused(propc.EstimatorError, run(boxed, estimator="rp"), "site 'z'", "black box")
    assert run(boxed)().shape == (B,)


@pytest.mark.parametrize("estimator", ["lr", "tp"])
def test_a_scalar_cost_where_one_for_each_sample_is_needed(estimator: str) -> None:
    def program(theta: Tensor) -> Tensor:
        return normal(theta, "z").mean()

    refused(propc.EstimatorError, run(program, estimator=estimator), "site 'z'", "scalar", "[batch]")
    assert run(program, estimator="rp")().shape == ()

    def table(theta: Tensor) -> Tensor:
        return normal(theta, "z")[:, None].expand(B, 2)

    refused(ValueError, run(table, estimator=estimator), "site 'z'", "float64[6, 2]")


norm = nn.BatchNorm1d(2, dtype=torch.float64)
MIXING: dict[str, Callable[[Tensor], Tensor]] = {
    "batch mean": lambda x: x - x.mean(),
    "softmax": lambda x: x.softmax(0),
    "sort": lambda x: x.sort(0).values,
    "flip": lambda x: x.flip(0),
    "cumsum": lambda x: x.cumsum(0),
    "roll": lambda x: x.roll(1, 0),
    "pairwise": lambda x: (x[:, None] - x[None]).square().sum(1),
    "batch norm": lambda x: norm(torch.stack([x, x], 1)).sum(1),
}


@pytest.mark.parametrize("estimator", ["lr", "tp"])
@pytest.mark.parametrize("mix", MIXING)
def test_an_operation_that_mixes_samples(mix: str, estimator: str) -> None:
    def program(theta: Tensor) -> Tensor:
        return propc.cost(MIXING[mix](normal(theta, "z")), "loss")

    compiled = propc.compile(program, estimator=estimator)
    for _ in range(2):  # at every call, not only at the first
        refused(
            propc.GraphError,
            lambda: compiled(leaf()),
            "cost 'loss'",
            "mixes samples",
            "estimator='rp'",
            program=program,
            at="propc.cost",
        )
    assert run(program, estimator="rp")().shape == (B,)


def test_mixing_on_the_way_to_a_site() -> None:
    def program(theta: Tensor) -> Tensor:
        x = normal(theta, "first")
        return propc.sample(Normal(x.mean().expand(B), 1.0), "second")

    refused(propc.GraphError, run(program), "site 'second'", "mixes samples", program=program, at="second")


def test_rows_that_do_not_mix() -> None:
    norm_eval = nn.BatchNorm1d(2).eval()

    def program(theta: Tensor) -> Tensor:
        x = normal(theta)
        y = norm_eval(torch.stack([x, x.sin()], 1)).sum(1)
        return y + x.cumsum(-1 if x.dim() > 1 else 0) * 0 + torch.randn(B) * x

    assert run(program, estimator="rp")().shape == (B,)
    assert run(lambda theta: norm_eval(torch.stack([normal(theta)] * 2, 1)).sum(1))().shape == (B,)


def test_a_batch_of_one_has_no_leave_one_out_mean() -> None:
    def program(theta: Tensor) -> Tensor:
        return propc.sample(Normal(theta.expand(1), 1.0), "z")

    for estimator in ("lr", "tp"):
        refused(
            propc.EstimatorError,
            run(program, estimator=estimator),
            "site 'z'",
            "batch of 1",
            "baseline=None",
            program=program,
            at="sample",
        )
    assert run(program, estimator=propc.estimator("lr", baseline=None))().shape == (1,)
    assert run(program, estimator="infer")().shape == (1,)


def test_a_site_without_the_batch() -> None:
    def program(theta: Tensor) -> Tensor:
        x = propc.sample(Normal(theta, 1.0), "z")
        return x * torch.ones(B)

    refused(propc.EstimatorError, run(program), "site 'z'", "6 samples", "Expand", program=program, at="sample")


def test_costs_of_different_lengths() -> None:
    def program(theta: Tensor) -> dict[str, Tensor]:
        x = normal(theta)
        return {"a": x, "b": x[:3]}

    refused(propc.GraphError, run(program), "'a'", "'b'", "3", "6")


@pytest.mark.parametrize(
    ("choose", "words"),
    [
        (lambda: propc.compile(normal, estimator="lrr"), ("'lrr'", "Did you mean 'lr'?", "'infer'")),
        (lambda: propc.compile(normal, estimator={"x": "tpp"}), ("'tpp'", "Did you mean 'tp'?")),
        (lambda: propc.compile(normal).with_estimator("lrr"), ("Did you mean 'lr'?",)),
        (lambda: propc.estimator("tp", targt="theta"), ("'targt'", "Did you mean 'target'?")),
        (lambda: propc.estimator("tp", weights="pas"), ("weights='pas'", "Did you mean 'past'?")),
        (lambda: propc.estimator("tp", k_interval=0), ("k_interval=0",)),
        (lambda: propc.estimator("lr", baseline="lo"), ("'lo'", "Did you mean 'loo'?")),
        (lambda: propc.estimator("combine", estimators=("rp",)), ("two",)),
        (lambda: propc.compile(normal, passes=["prun"]), ("'prun'", "Did you mean 'prune'?")),
        (lambda: propc.compile(normal, backend="eagr"), ("'eagr'", "Did you mean 'eager'?")),
    ],
)
def test_misspelt_choices(choose: Callable[[], Any], words: tuple[str, ...]) -> None:
    refused(propc.PropcValueError, choose, *words)


@pytest.mark.parametrize(
    ("choose", "words"),
    [
        (lambda: propc.compile(3), ("function", "got 3")),
        (lambda: propc.compile(dict), ("nn.Module",)),
        (lambda: propc.compile(normal, estimator=3), ("got 3", "'lr'")),
        (lambda: propc.compile(normal, passes=[3]), ("got 3",)),
        (lambda: propc.compile(normal, passes="prune"), ("'prune'", "passes=['prune']")),
        (lambda: propc.estimator("lr", baseline=3), ("got 3",)),
    ],
)
def test_choices_of_the_wrong_kind(choose: Callable[[], Any], words: tuple[str, ...]) -> None:
    refused(propc.PropcTypeError, choose, *words)


def test_misspelt_estimators_at_a_site() -> None:
    def program(theta: Tensor) -> Tensor:
        return propc.sample(Normal(theta.expand(B), 1.0), "z", estimator="lrr")

    refused(propc.PropcValueError, run(program), "site 'z'", "Did you mean 'lr'?", program=program, at="sample")
    refused(
        propc.PropcValueError,
        run(normal, estimator=lambda site: "lrr"),
        "site 'x'",
        "Did you mean 'lr'?",
        program=normal,
        at="sample",
    )


def test_a_pattern_that_matches_no_site() -> None:
    refused(propc.PropcValueError, run(normal, estimator={"latent*": "lr"}), "'latent*'", "'x'")

    def branch(theta: Tensor, deep: bool) -> Tensor:
        x = normal(theta, "shallow")
        return propc.sample(Normal(x, 1.0), "deep") if deep else x

    refused(
        propc.PropcValueError,
        run(branch, False, estimator={"deep": "lr"}),
        "'deep'",
        "branch that was not taken",
        "'shallow'",
    )
    assert run(branch, True, estimator={"deep": "lr"})().shape == (B,)


def test_targets() -> None:
    def program(theta: Tensor, other: Tensor) -> Tensor:
        return normal(theta, "z") + other

    def with_target(name: str) -> Callable[[], Any]:
        return run(program, torch.ones(B, requires_grad=True), estimator=propc.estimator("tp", target=name))

    refused(propc.PropcValueError, with_target("thet"), "'thet'", "Did you mean 'theta'?")
    refused(
        propc.EstimatorError,
        with_target("other"),
        "site 'z'",
        "'other'",
        "Choose another target",
        program=normal,
        at="sample",
    )
