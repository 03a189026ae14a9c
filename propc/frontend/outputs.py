"""Returned values: taken apart into tensors, and put together again at every call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from propc.distributions.spec import strip
from propc.errors import TraceError, message
from propc.frontend.environment.leaks import reaches_traced
from propc.types import Source
from propc.util.torch_private import pytree

_LATER: Any = None  # in place of a tensor


def take_apart_returned(leaf: Any, path: str, where: Source) -> tuple[list[Tensor], list[str], Callable[..., Any]]:
    """The tensors in a returned value, where they are, and how it is put together from them.

    Raises:
        TraceError: there are some where they cannot be put in again, such as in a set or a closure.
    """
    if isinstance(leaf, Tensor):
        return [leaf], [path], lambda parts: parts[0]
    tensors, names, build = strip(leaf)
    if reaches_traced(build([_LATER] * len(tensors))):
        raise TraceError(
            message(
                f"the function returns a {type(leaf).__name__}{path and f' at {path}'} with a traced tensor inside, "
                "which a later call could not renew",
                "Return tensors in tuples, lists, dicts or as attributes of an object.",
                where=where,
            )
        )
    return tensors, [f"{path}.{name}" for name in names], build


def assembler(
    pieces: list[tuple[int, Callable[..., Any]]], spec: pytree.TreeSpec, put: Sequence[Callable[[Any], None]] = ()
) -> Callable[..., Any]:
    """From returned tensors to the returned value; what stands behind it is put where the program keeps it."""

    def assemble(tensors: Sequence[Tensor]) -> Any:
        remaining = iter(tensors)
        values = [build([next(remaining) for _ in range(n)]) for n, build in pieces]
        for keep, value in zip(put, values[spec.num_leaves :]):
            keep(value)
        return pytree.tree_unflatten(values[: spec.num_leaves], spec)

    return assemble
