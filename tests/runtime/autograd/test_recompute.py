"""Stretches that run again in the reverse pass: the same numbers, the same gradients, done once what is done once."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from propc.runtime.autograd.recompute import checkpointed
from propc.runtime.autograd.run_once import once

Apply = Callable[[Any, Sequence[Tensor]], Sequence[Tensor]]


def whole(run: Any, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
    return run(*inputs)


def leaves(*shapes: tuple[int, ...]) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    return tuple(torch.randn(shape, generator=generator).requires_grad_() for shape in shapes)


def step(x: Tensor, w: Tensor) -> tuple[Tensor, ...]:
    """Several outputs: drawn from, detached, one that comes in, and one of truths."""
    y = (x @ w + torch.randn(x.shape)).sin() * torch.rand(())
    return y, y.detach(), x, x > 0


def three_steps(apply: Apply, x: Tensor, w: Tensor) -> Tensor:
    torch.manual_seed(2)
    total = x.new_zeros(())
    for _ in range(3):
        y, fixed, same, positive = apply(step, (x, w))
        total = total + (same * fixed).sum() + (y * positive).square().sum()
        x = y
    return total + torch.randn(())


def test_values_gradients_and_draws_are_the_same() -> None:
    x, w = leaves((4, 3), (3, 3))
    found = [(loss := three_steps(apply, x, w), *torch.autograd.grad(loss, (x, w))) for apply in (whole, checkpointed)]
    assert torch.equal(found[0][0], found[1][0])
    for one, two in zip(*found):
        torch.testing.assert_close(one, two, rtol=1e-12, atol=1e-12)


def test_the_generator_goes_on_as_if_nothing_had_run_again() -> None:
    x, w = leaves((4, 3), (3, 3))
    drawn = []
    for apply in (whole, checkpointed):
        three_steps(apply, x, w).backward()
        drawn.append(torch.randn(3))
    assert torch.equal(*drawn)


def test_second_derivatives() -> None:
    x, w = leaves((4, 3), (3, 3))
    found = []
    for apply in (whole, checkpointed):
        first = torch.autograd.grad(three_steps(apply, x, w), (x, w), create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first), (x, w))
        found.append([*first, *second])
    for one, two in zip(*found):
        torch.testing.assert_close(one, two, rtol=1e-11, atol=1e-11)


def test_third_derivatives() -> None:
    (x,) = leaves((3,))
    found = []
    for apply in (whole, checkpointed):
        (y,) = apply(lambda x: [(x * x).sin()], (x,))
        for _ in range(3):
            (y,) = torch.autograd.grad(y.sum(), x, create_graph=True)
        found.append(y)
    torch.testing.assert_close(*found)


def test_one_input_upstream_of_another() -> None:
    """What comes in twice, once through another input, is not counted twice."""
    (x,) = leaves((3,))

    def run(a: Tensor, b: Tensor) -> list[Tensor]:
        return [a * b.exp()]

    for twice in (False, True):
        found = []
        for apply in (whole, checkpointed):
            (y,) = apply(run, (x, x.square()))
            found += torch.autograd.grad(y.sum(), x, create_graph=twice)
        torch.testing.assert_close(*found)


def test_a_second_backward() -> None:
    x, w = leaves((4, 3), (3, 3))
    loss = three_steps(checkpointed, x, w)
    loss.backward(retain_graph=True)
    first, x.grad = x.grad, None
    loss.backward()
    assert torch.equal(first, x.grad)
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()


def test_only_some_gradients_are_asked_for() -> None:
    x, w = leaves((4, 3), (3, 3))
    expected = torch.autograd.grad(three_steps(whole, x, w), w)
    torch.testing.assert_close(torch.autograd.grad(three_steps(checkpointed, x, w), w), expected)
    fixed = x.detach()
    expected = torch.autograd.grad(three_steps(whole, fixed, w), w)
    torch.testing.assert_close(torch.autograd.grad(three_steps(checkpointed, fixed, w), w), expected)


def test_nothing_inside_is_kept() -> None:
    x, w = leaves((4, 3), (3, 3))
    inside: list[weakref.ref[Tensor]] = []

    def run(x: Tensor, w: Tensor) -> list[Tensor]:
        middle = x @ w
        inside.append(weakref.ref(middle))
        return [middle.sin().exp()]

    (y,) = checkpointed(run, (x, w))
    gc.collect()
    assert inside[0]() is None
    y.sum().backward()
    gc.collect()
    assert len(inside) == 2
    assert inside[1]() is None


@pytest.mark.parametrize("grad", [True, False])
def test_without_a_gradient_it_runs_as_it_is(grad: bool) -> None:
    x, w = leaves((4, 3), (3, 3))
    with torch.set_grad_enabled(grad):
        (y,) = checkpointed(lambda x, w: [x @ w], (x.detach(), w.detach()) if grad else (x, w))
    assert y.grad_fn is None
    assert not y.requires_grad


def test_what_is_done_once() -> None:
    """A call inside `once` is not made again, and draws behind it are as they were; in stretches in stretches too."""
    (x,) = leaves((3,))
    made: list[int] = []

    def box() -> tuple[Tensor, str]:
        made.append(1)
        return torch.randn(3), "text"

    def inner(x: Tensor) -> list[Tensor]:
        value, text = once(box)
        assert text == "text"
        return [x * value * torch.randn(3) + once(lambda: torch.randn(3)) * x]

    def outer(apply: Apply) -> Callable[[Tensor], Sequence[Tensor]]:
        return lambda x: apply(inner, apply(inner, (x * torch.randn(3),)))

    found = []
    for apply in (whole, checkpointed):
        torch.manual_seed(3)
        (y,) = apply(outer(apply), (x,))
        (first,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
        found.append((y, first, *torch.autograd.grad(first.sum(), x)))
        assert len(made) == 2
        made.clear()
    for one, two in zip(*found):
        torch.testing.assert_close(one, two)


def test_what_is_changed_in_place_afterwards_is_an_error() -> None:
    (x,) = leaves((3,))
    value = x * 2
    (y,) = checkpointed(lambda v: [v.sin()], (value,))
    value.zero_()
    with pytest.raises(RuntimeError, match="inplace"):
        y.sum().backward()


def test_inside_and_outside_of_autocast() -> None:
    x, w = leaves((4, 3), (3, 3))
    x, w = x.float().detach().requires_grad_(), w.float().detach().requires_grad_()
    found = []
    for apply in (whole, checkpointed):
        with torch.autocast("cpu", torch.bfloat16):
            (y,) = apply(lambda x, w: [torch.tanh(x @ w) @ w], (x, w))
        found.append((y, *torch.autograd.grad(y.float().square().sum(), (x, w))))
    assert found[0][0].dtype == torch.bfloat16
    for one, two in zip(*found):
        assert torch.equal(one, two)


def test_an_error_inside_leaves_nothing_behind() -> None:
    (x,) = leaves((3,))
    calls: list[int] = []

    def run(x: Tensor) -> list[Tensor]:
        calls.append(1)
        if len(calls) == 2:
            raise ValueError("the second time")
        return [x * torch.randn(3)]

    (y,) = checkpointed(run, (x,))
    state = torch.get_rng_state()
    with pytest.raises(ValueError, match="the second time"):
        y.sum().backward(retain_graph=True)
    assert torch.equal(state, torch.get_rng_state())
    y.sum().backward()
    assert once(lambda: 3) == 3


@pytest.mark.gpu
def test_draws_on_another_device() -> None:
    x, w = (value.detach().cuda().requires_grad_() for value in leaves((4, 3), (3, 3)))

    def run(x: Tensor, w: Tensor) -> list[Tensor]:
        return [torch.sin(x @ w * torch.randn_like(x)) + torch.randn(3).cuda()]

    found = []
    for apply in (whole, checkpointed):
        torch.manual_seed(0)
        (y,) = apply(run, (*apply(run, (x, w)), w))
        found.append((y, *torch.autograd.grad(y.sum(), (x, w)), torch.randn(3, device="cuda")))
    for one, two in zip(*found):
        torch.testing.assert_close(one, two)
