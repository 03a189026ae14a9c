"""One step of a scan: the state must stay what it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from torch import Tensor

from propc.errors import PropcValueError, message
from propc.frontend.environment.code_names import PRIMITIVE
from propc.frontend.user_source import user_source
from propc.util.torch_private import DisableTorchFunction, pytree

S = TypeVar("S")


def advanced(step: Callable[[S], S], state: S, index: int) -> S:
    """The state after one step, which must be like the one before.

    Raises:
        PropcValueError: it is not.
    """
    after = step(state)
    with DisableTorchFunction():
        _check(state, after, index)
    return after


def _check(before: Any, after: Any, index: int) -> None:
    """Structure, shapes, dtypes and devices of a state stay as they are, and so does what is no tensor."""
    old, structure = pytree.tree_flatten_with_path(before)
    new, made = pytree.tree_flatten_with_path(after)
    if structure != made or (after is None and before is not None):
        got = "None; does it return the state?" if after is None else f"one of another structure, {made}"
        raise _changed(index, f"the state becomes {got}", f"Return a state of the structure {structure}.")
    for (path, a), (_, b) in zip(old, new):
        leaf = f"the state{pytree.keystr(path)}"
        if isinstance(a, Tensor) != isinstance(b, Tensor):
            raise _changed(
                index, f"{leaf} was {kind_of(a)} and becomes {kind_of(b)}", "Let it be a tensor from the start."
            )
        if isinstance(a, Tensor) and _form(a) != _form(b):
            fix = (
                "Expand the initial state." if a.dtype == b.dtype else "Give the initial state the dtype of the others."
            )
            raise _changed(index, f"{leaf} was {_text(a)} and becomes {_text(b)}", fix)
        if not isinstance(a, Tensor) and not _same(a, b):
            fix = (
                "Carry it as a tensor, such as torch.zeros(())." if isinstance(a, PRIMITIVE) else "Carry tensors only."
            )
            raise _changed(index, f"{leaf} was {kind_of(a)} and becomes {kind_of(b)}, and is no tensor", fix)


def _same(a: Any, b: Any) -> bool:
    return a is b or (isinstance(a, PRIMITIVE) and type(a) is type(b) and bool(a == b))


def _form(value: Tensor) -> tuple[Any, ...]:
    return value.shape, value.dtype, value.device


def _text(value: Tensor) -> str:
    return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)} on {value.device}"


def kind_of(value: Any) -> str:
    """What a user calls it."""
    return "a tensor" if isinstance(value, Tensor) else f"{type(value).__name__} {value!r:.40}"


def _changed(index: int, finding: str, fix: str) -> PropcValueError:
    return PropcValueError(message(f"in step {index} {finding}", fix, at="a scan", where=user_source()))
