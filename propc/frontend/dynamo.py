"""Where a compiled call stands: under `torch.compile`, a `torch.func` transform, beside calls of other threads."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from threading import get_ident
from typing import Any

import torch

from propc.errors import PropcTypeError, message
from propc.util.torch_private import (
    disable_dynamo,
    dynamo_loaded,
    get_eval_frame_callback,
    set_eval_frame,
    transforms_active,
)

_RUNS: dict[int, int] = {}  # how often a thread has begun or ended a call


def run(call: Callable[..., Any], *args: Any) -> Any:
    """Make a compiled call, unseen by `torch.compile`, if one is at work around it, and noted for other threads."""
    if torch.compiler.is_compiling():  # it looks at this very line: it is told first, as it warns of what it cannot see
        return _unseen(call, *args)
    me = get_ident()
    _RUNS[me] = _RUNS.get(me, 0) + 1
    try:
        if get_eval_frame_callback() is None:
            return call(*args)
        before = set_eval_frame(None)
        try:
            return call(*args)
        finally:
            set_eval_frame(before)
    finally:
        _RUNS[me] += 1


@disable_dynamo
def _unseen(call: Callable[..., Any], *args: Any) -> Any:
    return run(call, *args)


def dynamo_asleep() -> AbstractContextManager[Any]:
    """While a program is traced, what `torch.compile` has made of its parts runs as it was written."""
    if not dynamo_loaded():  # then nothing is compiled, and it takes seconds to import
        return nullcontext()
    asleep: AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
    return asleep


def runs() -> Mapping[int, int]:
    """What `others_ran` compares with."""
    return dict(_RUNS)


def others_ran(before: Mapping[int, int]) -> bool:
    """Whether another thread has been in a compiled call since."""
    me = get_ident()
    return any(count % 2 or count != before.get(thread) for thread, count in runs().items() if thread != me)


def refuse_transforms(name: str) -> None:
    """Refuse a call under `torch.func.grad`, `vmap` and the like.

    Raises:
        PropcTypeError: names the function.
    """
    if transforms_active():
        raise PropcTypeError(
            message(
                f"compiled function {name!r} is called under a torch.func transform (grad, vmap, jvp, jacrev), which "
                "cannot see what its estimators do in the reverse pass",
                "Take its gradient by .backward() or torch.autograd.grad, outside of the transform; in place of vmap "
                "give it the elements as rows of the batch, or draw several samples (estimator option samples=).",
            )
        )
