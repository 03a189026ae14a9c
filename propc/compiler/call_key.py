"""A call taken apart: what is a tensor, and the key of its graph."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor

from propc.util.torch_private import pytree


class CallKey(NamedTuple):
    """A call taken apart: flattened arguments, which of them are tensors, the key of its graph, and the
    module or object that it is called with."""

    leaves: list[Any]
    tensors: list[Tensor]
    tree: pytree.TreeSpec
    key: Any
    owner: Any


def flatten(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[list[Any], pytree.TreeSpec, Any]:
    """The leaves of a call's arguments, their tree, and a key of the tree; quickly where each argument is a leaf."""
    leaves = [*args, *kwargs.values()]
    if all(isinstance(leaf, _LEAVES) for leaf in leaves):
        form = len(args), tuple(kwargs)
        return leaves, _flat(*form), form
    leaves, tree = pytree.tree_flatten((args, kwargs))
    return leaves, tree, tree


_LEAVES = (Tensor, int, float, str, type(None))


@functools.lru_cache
def _flat(count: int, names: tuple[str, ...]) -> pytree.TreeSpec:
    """The tree of a call whose arguments are all leaves."""
    return pytree.tree_flatten(((0,) * count, dict.fromkeys(names)))[1]


def static_key(leaf: Any) -> Any:
    """A static argument by value, or by identity where it has no hash."""
    if isinstance(leaf, (int, float, str, bool, type(None))):
        return type(leaf), leaf
    try:
        hash(leaf)
    except TypeError:
        return "object", id(leaf)
    return type(leaf), leaf


def weakly(owner: Any) -> Callable[[], Any]:
    """Gives the owner, without keeping it alive where that can be."""
    try:
        return weakref.ref(owner)
    except TypeError:  # None, and objects with slots
        return lambda: owner


def identity(owner: Any) -> Any:
    """The owner's part of the key, which does not keep it alive."""
    try:
        return weakref.ref(owner) if owner is not None else None
    except TypeError:
        return id(owner)
