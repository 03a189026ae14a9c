"""Where a program needs the value of a traced tensor: what the user wrote, and what to write instead."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor

from propc.errors import TraceError, message
from propc.frontend.user_source import source_of
from propc.fx.operations import name_of
from propc.util.torch_private import pytree

_STACK = "Use torch.stack to put traced tensors into one."
_MASK = "A mask gives a tensor of unknown size: use torch.where or multiply by the mask."
_MARK = "Mark the draw with propc.sample."
_ANY = (
    "Use torch.where for a choice by value, propc.opaque for code that must see values, or pass what decides as a "
    "static (non-tensor) argument."
)
_INSTEAD = {
    "tensor": _STACK,
    "as_tensor": _STACK,
    "new_tensor": _STACK,
    "masked_select": _MASK,
    "nonzero": "It gives a tensor of unknown size: use torch.where(condition, a, b) or a mask.",
    "unique": "It gives a tensor of unknown size: use propc.opaque.",
    "rsample": _MARK,
    "sample": _MARK,
    "indexing with a mask": _MASK,
    "indexing with a single number": "Use torch.index_select, or index with one dimension more: table[index[None]][0].",
}
_CALLED = {
    "__bool__": "a condition ('if', 'while', 'and', 'not', 'assert')",
    "__float__": "float()",
    "__int__": "int()",
    "__complex__": "complex()",
    "__index__": "an index or a count, such as range() or a list's [ ],",
    "__contains__": "'in'",
    "__format__": "a format such as f'{x:.2f}'",
    "item": ".item()",
}


def called(func: Any, args: Any) -> str:
    """What the user wrote, for a message."""
    name = name_of(func)
    return _indexing(args[1]) if name == "__getitem__" else _CALLED.get(name, repr(name))


def instead(func: Any, args: Any) -> str:
    """What to write instead of an operation that needs to see values."""
    name = name_of(func)
    return _INSTEAD.get(_indexing(args[1]) if name == "__getitem__" else name, _ANY)


def _indexing(index: Any) -> str:
    parts = index if isinstance(index, tuple) else (index,)
    if any(isinstance(part, Tensor) and part.dtype in (torch.bool, torch.uint8) for part in parts):
        return "indexing with a mask"
    return "a bound of a slice" if any(isinstance(p, slice) for p in parts) else "indexing with a single number"


def shows(func: Any, args: Any) -> bool:
    """Whether this writes a tensor's value into a text. Without a format it would write that it is traced."""
    return name_of(func) == "__format__" and bool(args[1:] and args[1])


def gathers(func: Any, args: Any) -> bool:
    """Whether this makes a tensor of Python numbers from a list with traced tensors in it."""
    name = name_of(func)
    given = args[1:] if name == "new_tensor" else args
    return (
        name in ("tensor", "as_tensor", "asarray", "new_tensor")
        and any(isinstance(t, Tensor) for t in pytree.tree_leaves(given))
        and not isinstance(given[0], Tensor)
    )


def reads_memory(error: RuntimeError) -> bool:
    """Whether torch found that a traced tensor has no memory to read."""
    return "data is not allocated yet" in str(error)


def as_number(error: TypeError) -> TraceError | None:
    """The error for a traced tensor in a place where torch takes numbers only; None for other errors."""
    if not re.search(r"must be .*, not FakeTensor", str(error)):
        return None
    return TraceError(
        message(
            f"a traced tensor stands where torch needs a number, which is only known when the compiled function runs: "
            f"{str(error).replace('FakeTensor', 'a tensor')}",
            "Use tensors throughout, such as value.expand(3) for torch.full((3,), value), or pass it as a static "
            "(non-tensor) argument.",
            where=source_of(error),
        )
    )
