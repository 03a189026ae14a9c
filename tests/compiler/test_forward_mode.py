"""Forward-mode differentiation: tangents are right, or refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.distributions import Bernoulli, Normal

import propc

ROWS = 50_000


def tangents(program: Any, estimator: str, wants: bool, **options: Any) -> Tensor:
    torch.manual_seed(0)
    at = torch.full((ROWS,), 0.4, requires_grad=wants)
    with forward_ad.dual_level():
        given = forward_ad.make_dual(at, torch.ones(ROWS))
        found = forward_ad.unpack_dual(propc.compile(program, estimator=estimator, **options)(given)).tangent
    assert found is not None
    return found


def smooth(m: Tensor) -> Tensor:
    return propc.sample(Normal(m, 1.0), "x").square()


def jump(m: Tensor) -> Tensor:
    return (propc.sample(Normal(m, 1.0), "x") > 0).float()


def discrete(logits: Tensor) -> Tensor:
    return propc.sample(Bernoulli(logits=logits), "z").square()


@pytest.mark.parametrize("wants", [False, True])
@pytest.mark.parametrize("estimator", ["rp", "infer"])
def test_a_path_carries_tangents(estimator: str, wants: bool) -> None:
    found = tangents(smooth, estimator, wants)
    assert abs(found.mean() - 0.8) < 4 * found.std() / ROWS**0.5


@pytest.mark.parametrize("wants", [False, True])
def test_enumeration_carries_tangents(wants: bool) -> None:
    p = torch.tensor(0.4).sigmoid()
    torch.testing.assert_close(tangents(discrete, "enumerate", wants), (p * (1 - p)).expand(ROWS))


@pytest.mark.parametrize("wants", [False, True])
@pytest.mark.parametrize(
    ("program", "estimator"),
    [(discrete, e) for e in ("lr", "rloo", "local", "mvd", "st", "disarm", "infer")] + [(jump, "infer"), (jump, "lr")],
)
def test_others_are_refused(program: Any, estimator: str, wants: bool) -> None:
    with pytest.raises(propc.PropcError, match=r"at site '[xz]' .*forward-mode"):
        tangents(program, estimator, wants)


@pytest.mark.parametrize("estimator", ["lr", "tp", "mvd"])
def test_scores_are_refused(estimator: str) -> None:
    with pytest.raises(propc.PropcError, match=r"at site 'x' .*forward-mode"):
        tangents(smooth, estimator, True)


def test_a_call_without_tangents_runs_in_a_dual_level() -> None:
    with forward_ad.dual_level():
        assert propc.compile(discrete, estimator="lr")(torch.zeros(4, requires_grad=True)).shape == (4,)


def test_jvp_is_refused() -> None:
    with pytest.raises(propc.PropcError, match=r"under a torch.func transform"):
        torch.func.jvp(propc.compile(smooth), (torch.ones(3),), (torch.ones(3),))
