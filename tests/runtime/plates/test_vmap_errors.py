"""Operations that `torch.vmap` cannot run: the error names them, where they are, and the way out."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Bernoulli, Normal

import propc
from propc.errors import EstimatorError

BATCH = 5


class Double(torch.autograd.Function):
    """Without a rule for vmap."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return 2 * grad


class Triple(torch.autograd.Function):
    """With one."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return 3 * x

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return 3 * grad


def through(step: Any, estimator: Any = None) -> Tensor:
    """The gradient of a program with a step between its site and its cost."""

    @propc.compile(estimator=estimator or propc.estimator("lr", samples=3))
    def program(theta: Tensor) -> Tensor:
        z = propc.sample(Normal(theta.expand(BATCH, 2), 1.0), "z")
        return step(z).sum(-1)

    theta = torch.tensor(0.3, requires_grad=True)
    (gradient,) = torch.autograd.grad(program(theta).mean(), theta)
    return gradient


def counted(total: Tensor) -> Any:
    def step(z: Tensor) -> Tensor:
        total.add_(z.detach().sum(-1))
        return z

    return step


def assigned(z: Tensor) -> Tensor:
    y = torch.zeros(BATCH, 2)
    y.view(BATCH, 2)[0] = z[0]  # into a view of a view, which stays a write
    return y + z


def recurrent() -> Any:
    network = nn.LSTM(2, 2, 2, dropout=0.5, batch_first=True)
    return lambda z: network(z[:, None])[0][:, 0]


REFUSED = {  # what makes the step, and what the error says of the way out
    "Double": (lambda: Double.apply, "Give Double a vmap rule"),
    "add_": (lambda: counted(torch.zeros(BATCH)), "x = x + y in place of x"),
    "setitem": (lambda: assigned, "torch.stack in place of assignments"),
    "rrelu": (lambda: partial(torch.rrelu, training=True), "propc.opaque if no gradient has to pass it"),
    "batch_norm": (lambda: nn.BatchNorm1d(2), "running_mean"),
    "lstm": (recurrent, "Write it with other operations"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_the_error_names_the_operation(name: str) -> None:
    make, fix = REFUSED[name]
    with pytest.raises(EstimatorError) as caught:
        through(make())
    words = str(caught.value)
    assert words.startswith(f"at operation {name!r} (test_vmap_errors.py:"), words
    assert "plate of 'z'" in words
    assert fix in words
    assert "use one sample, or another estimator, at 'z'" in words
    assert caught.value.__cause__ is not None


def test_the_line_is_the_users() -> None:
    def step(z: Tensor) -> Tensor:
        y = z + 1
        return Double.apply(y).square()

    with pytest.raises(EstimatorError, match=rf"test_vmap_errors.py:{step.__code__.co_firstlineno + 2}\)"):
        through(step)


def test_what_fails_without_plates_too_fails_as_it_is() -> None:
    with pytest.raises(IndexError, match="out of bounds"):
        through(lambda z: Triple.apply(z)[torch.tensor([9])])


def test_one_sample_is_a_way_out() -> None:
    assert torch.isfinite(through(Double.apply, "lr"))
    assert torch.isfinite(through(recurrent(), "lr"))


def test_of_several_plates_all_are_named() -> None:
    @propc.compile(estimator={"z": "enumerate", "x": propc.estimator("rp", samples=3)})
    def program(theta: Tensor) -> Tensor:
        z = propc.sample(Bernoulli(logits=theta.expand(BATCH)), "z")
        x = propc.sample(Normal(z * theta, 1.0), "x")
        return Double.apply(x)

    with pytest.raises(EstimatorError, match=r"plate of 'x', 'z'.*another estimator, at 'z', 'x'"):
        program(torch.tensor(0.3, requires_grad=True))


def test_functions_with_a_vmap_rule_run() -> None:
    seed = torch.random.get_rng_state()
    found = through(Triple.apply, propc.estimator("rp", samples=3))
    torch.random.set_rng_state(seed)
    torch.testing.assert_close(found, through(lambda z: 3 * z, propc.estimator("rp", samples=3)))
