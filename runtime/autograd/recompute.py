"""Running a stretch of a program again in the reverse pass, in place of keeping what it has computed.

Chen, Xu, Zhang and Guestrin (2016), arXiv:1604.06174: of H steps in stretches of √H each, √H values between the
stretches are kept, and those inside one stretch at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from propc.fx.operations import region
from propc.runtime.autograd.run_once import EffectLog, differentiating
from propc.runtime.autograd.tokens import applied

Run = Callable[..., Sequence[Tensor]]
CPU = torch.device("cpu")


def checkpointed(
    run: Run,
    inputs: Sequence[Tensor],
    devices: Iterable[torch.device] = (),
    around: Callable[[], AbstractContextManager[None]] = nullcontext,
    draws: bool = True,
) -> tuple[Tensor, ...]:
    """``run(*inputs)``, of which autograd keeps the inputs; the reverse pass runs it again.

    It runs again with the same random numbers, bit for bit, in the same autocast region. What must not be done twice
    goes through `propc.runtime.autograd.run_once.once`. Gradients are those of ``run(*inputs)`` up to the order in
    which autograd adds up what arrives at one input. Under ``create_graph=True`` it is differentiated again, where
    every backward function inside is linear in what it gets; see
    `propc.runtime.autograd.run_once.differentiated_twice`.

    Args:
        run: a function of tensors that writes into none of them. What it reads besides gets no gradient.
        inputs: with or without gradient.
        devices: on which it draws random numbers, beside the CPU and the devices of the inputs.
        around: stands around the reverse pass, such as what explains its errors.
        draws: whether it may draw random numbers; if not, no states of generators are kept.
    """
    if not torch.is_grad_enabled() or not any(value.requires_grad for value in inputs):
        return tuple(run(*inputs))
    drawn = {CPU, *(value.device for value in inputs), *devices} if draws else set()
    recording = EffectLog([device for device in drawn if device.type != "meta"])
    found: tuple[Tensor, ...] = _checkpoint(run, recording, around, *inputs)
    return found


class _Recompute(Function):
    """(inputs) → what `run` makes of them."""

    @staticmethod
    def forward(ctx: Any, run: Run, recording: EffectLog, around: Any, *inputs: Tensor) -> tuple[Tensor, ...]:
        ctx.run, ctx.recording, ctx.around = run, recording, around
        with torch.enable_grad(), recording.running():
            ctx.region = region()
            made = run(*(value.detach().requires_grad_(value.requires_grad) for value in inputs))
        wanted = [value.requires_grad for value in made]
        found = tuple(value.detach() for value in made)
        ctx.count = len(inputs)
        ctx.save_for_backward(*inputs, *recording.tensors)
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*(value for value, wants in zip(found, wanted) if not wants))
        recording.tensors = []
        return found

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        needed = ctx.needs_input_grad[3:]
        if all(grad is None for grad in grads):
            return (None,) * len(ctx.needs_input_grad)
        saved, twice = ctx.saved_tensors, torch.is_grad_enabled()
        given = [_start(value, twice) for value in saved[: ctx.count]]
        with ctx.around():
            with ctx.region.entered(), ctx.recording.repeating(saved[ctx.count :]):
                made = ctx.run(*given)
            ends, cotangents = zip(*((value, grad) for value, grad in zip(made, grads) if grad is not None))
            wanted = [value for value, needs in zip(given, needed) if needs]
            with differentiating(twice):
                back = iter(torch.autograd.grad(ends, wanted, cotangents, allow_unused=True, create_graph=twice))
        return None, None, None, *(next(back) if needs else None for needs in needed)


_checkpoint = applied(_Recompute)


def _start(value: Tensor, twice: bool) -> Tensor:
    """A value where the history of a stretch begins, so that no gradient goes past it.

    Where the gradient is differentiated again, it begins behind the value's own history.
    """
    if twice and value.requires_grad:
        return value.view_as(value)
    return value.detach().requires_grad_(value.requires_grad)
