"""A function in a pickle: by its name, where that leads to the compiled one."""

from __future__ import annotations

import functools
import importlib
from typing import Any


def reference(fn: Any) -> Any:
    """What a pickle keeps of a function: its module and path where these lead to the compiled one, else itself."""
    module, path = getattr(fn, "__module__", None), getattr(fn, "__qualname__", "")
    try:
        named = _named(str(module), path)
    except (ImportError, AttributeError):  # inside another function, a lambda, or made while running
        return fn
    return (module, path) if named is not fn and _plain(named) is fn else fn


def referred(reference: Any) -> Any:
    """The function that a pickle refers to."""
    return _plain(_named(*reference)) if isinstance(reference, tuple) else reference


def _named(module: str, path: str) -> Any:
    return functools.reduce(getattr, path.split("."), importlib.import_module(module))


def _plain(compiled: Any) -> Any:
    """The user's own function behind a compiled function or forward."""
    return getattr(compiled, "_propc_plain", None)
