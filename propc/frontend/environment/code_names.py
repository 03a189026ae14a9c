"""What names the code of a user's functions and classes mentions, and what their classes hold."""

from __future__ import annotations

import functools
import inspect
import os
import sys
from collections.abc import Iterator
from types import CodeType, FunctionType
from typing import Any

import torch

LIBRARIES = ("torch", "propc", "numpy", "builtins", "functools")
_PACKAGES = frozenset({"site-packages", "dist-packages"})
_STANDARD = sys.stdlib_module_names - {"__main__"}
# Code with one of these may read an attribute that it does not name.
LOOKUPS = frozenset({"getattr", "vars", "__dict__", "attrgetter", "asdict", "astuple", "fields"})
PRIMITIVE = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, torch.Size)


@functools.lru_cache(maxsize=4096)
def names_in(code: CodeType) -> frozenset[str]:
    """Names of globals and attributes in a function and in the functions written inside it."""
    inner = (names_in(part) for part in code.co_consts if isinstance(part, CodeType))
    return frozenset(code.co_names).union(*inner)


@functools.lru_cache(maxsize=4096)
def is_installed(name: str) -> bool:
    """Whether a module comes with Python or a package; its own state is taken to stay as it is."""
    if name.split(".")[0] in (*LIBRARIES, *_STANDARD):
        return True
    file = getattr(sys.modules.get(name), "__file__", None) or ""
    return not _PACKAGES.isdisjoint(file.split(os.sep))


@functools.lru_cache(maxsize=1024)
def class_values(kind: Any) -> frozenset[str]:
    """Names of the values, which are no methods, properties or the like, among a user class's own attributes."""
    return frozenset(
        name
        for k in _users(kind)
        for name, value in vars(k).items()
        if not hasattr(type(value), "__get__") and not name.startswith("__")
    )


@functools.lru_cache(maxsize=1024)
def slots(kind: Any) -> tuple[str, ...]:
    """Names of the attributes of a user class that stand in no ``__dict__``."""
    own = (vars(k).get("__slots__", ()) for k in _users(kind))
    return tuple(name for names in own for name in ((names,) if isinstance(names, str) else names))


def _users(kind: Any) -> list[Any]:
    """A class and its parents, without those of libraries."""
    return [k for k in kind.__mro__ if k.__module__.split(".")[0] not in LIBRARIES]


def _is_operator(name: str) -> bool:
    """Whether Python calls a method of this name without its being mentioned."""
    return name.startswith("__") and name not in ("__init__", "__new__", "__del__", "__repr__", "__getstate__")


def methods(kind: Any, names: frozenset[str]) -> Iterator[tuple[type, str, Any]]:
    """Class, name and function of the methods and properties of a class that a program can call."""
    for parent in kind.__mro__:
        library = parent.__module__.split(".")[0] in LIBRARIES
        for name, member in list(vars(parent).items()):
            if name not in names and name != "forward" and (library or not _is_operator(name)):
                continue
            for part in (member, *(getattr(member, key, None) for key in ("__func__", "fget", "func"))):
                if callable(part) and isinstance(inspect.unwrap(part), FunctionType):
                    yield parent, name, part
