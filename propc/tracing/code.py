"""What names the code of a user's functions and classes mentions."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator
from types import CodeType, FunctionType
from typing import Any

import torch
from torch import Tensor

LIBRARIES = ("torch", "propc", "numpy", "builtins", "functools")
PRIMITIVE = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, torch.Size)


@functools.lru_cache(maxsize=4096)
def names_in(code: CodeType) -> frozenset[str]:
    """Names of globals and attributes in a function and in the functions written inside it."""
    inner = (names_in(part) for part in code.co_consts if isinstance(part, CodeType))
    return frozenset(code.co_names).union(*inner)


@functools.lru_cache(maxsize=1024)
def class_values(kind: Any) -> frozenset[str]:
    """Names of plain values and tensors among a user class's own attributes."""
    kinds = [k for k in kind.__mro__ if k.__module__.split(".")[0] not in LIBRARIES]
    return frozenset(
        name
        for k in kinds
        for name, value in vars(k).items()
        if isinstance(value, (*PRIMITIVE, Tensor, list, dict)) and not name.startswith("__")
    )


def _is_operator(name: str) -> bool:
    """Whether Python calls a method of this name without its being mentioned."""
    return name.startswith("__") and name not in ("__init__", "__new__", "__del__", "__repr__", "__getstate__")


def methods(kind: type, names: frozenset[str]) -> Iterator[CodeType]:
    """Code of the methods and properties of a class that a program can call."""
    for parent in kind.__mro__:
        library = parent.__module__.split(".")[0] in LIBRARIES
        for name, member in vars(parent).items():
            if name not in names and name != "forward" and (library or not _is_operator(name)):
                continue
            for part in (member, getattr(member, "__func__", None), getattr(member, "fget", None)):
                for each in (part, inspect.unwrap(part) if callable(part) else None):
                    if isinstance(each, FunctionType):
                        yield each.__code__
