"""What `explain` says of a backend."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal

import propc
from propc.runtime.backends import Report

pytestmark = pytest.mark.usefixtures("plain")


def program(theta: Tensor) -> Tensor:
    x = propc.sample(Normal(theta.expand(8), 1.0), "x")
    y = propc.opaque(torch.sign)(x)
    return x.square() + y


def test_before_and_after_the_first_call() -> None:
    theta = torch.tensor(0.5, requires_grad=True)
    compiled = propc.compile(program, estimator="lr", backend="inductor")
    assert "compiles at the first call" in str(compiled.explain(theta))
    compiled(theta)
    text = str(compiled.explain(theta))
    assert "backend inductor: 4 stages compiled" in text
    assert "a black box" in text
    assert "a black box" in compiled.explain(theta)._repr_html_()


def test_eager_says_nothing() -> None:
    compiled = propc.compile(program, estimator="lr")
    assert "backend" not in str(compiled.explain(torch.tensor(0.5, requires_grad=True)))


def test_what_is_no_option() -> None:
    with pytest.raises(propc.errors.PropcValueError, match="Did you mean 'inductor'"):
        propc.compile(program, backend="inducter")


def test_many_names_are_cut_short() -> None:
    text = str(Report("inductor", apart=tuple((f"x{i}", "no") for i in range(9))))
    assert text.splitlines()[1] == "  not compiled: x0, x1, … x8 (9): no"
