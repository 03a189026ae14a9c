"""Backends give the same values and gradients from the same seed, and say what they have made of a graph."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from agreement import assert_agree
from laws_and_estimators import ESTIMATED, LAWS, REPARAMETERIZED, B, rows, theta

import propc

pytestmark = pytest.mark.filterwarnings("ignore::propc.PropcWarning")


@pytest.mark.parametrize("name", ESTIMATED)
def test_every_estimator(name: str, plain: None) -> None:
    program, estimator = ESTIMATED[name]
    (report,) = assert_agree(program, (theta(), rows(B)), estimator)
    assert report.stages


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("estimator", ["lr", "rp", "tp"])
def test_every_law(law: str, estimator: str, plain: None) -> None:
    if estimator != "lr" and law not in REPARAMETERIZED:
        pytest.skip("no path")

    def program(theta: torch.Tensor, x: torch.Tensor) -> Any:
        drawn = propc.sample(LAWS[law](theta * x), "z")
        costs = torch.cos(drawn + 0.1)
        return costs if costs.dim() == 1 else costs.sum(-1)

    (report,) = assert_agree(program, (theta(), rows(B)), estimator, calls=2)
    assert report.stages
