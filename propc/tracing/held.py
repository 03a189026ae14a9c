"""Names for the tensors that a program holds, and how to find them again at a later call.

A parameter is looked up by name at every call, so that `.to()`, `load_state_dict`,
copies and `torch.func.functional_call` work; a closed-over or global tensor is looked
up in its variable, so that rebinding it is seen.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from functools import reduce
from types import FunctionType
from typing import Any

import torch
from torch import Tensor

Fetch = Callable[[Any], Tensor]
_PRIMITIVE = (bool, int, float, str, type(None), torch.dtype, torch.device)


def variables(fn: Any) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Name and reader of every closure and global variable that a function refers to."""
    fn = inspect.unwrap(fn)
    fn = getattr(fn, "__func__", fn)
    if not isinstance(fn, FunctionType):
        return
    for name, cell in zip(fn.__code__.co_freevars, fn.__closure__ or ()):
        yield name, _cell_reader(cell)
    for name in fn.__code__.co_names:
        if name in fn.__globals__:
            yield name, _global_reader(fn.__globals__, name)


def held_tensors(fn: Any, module: torch.nn.Module | None) -> dict[int, tuple[str, Fetch]]:
    """Path and look-up of the tensors reachable from a module and from a function's variables, by id."""
    found: dict[int, tuple[str, Fetch]] = {}
    if module is not None:
        for path, tensor in _module_tensors(module):
            found.setdefault(id(tensor), (path, _module_fetch(path)))
    for name, read in variables(fn):
        value = _read(read)
        if isinstance(value, Tensor):
            found.setdefault(id(value), (name, lambda _, read=read: read()))
        elif isinstance(value, torch.nn.Module) and value is not module:
            for path, tensor in _module_tensors(value):
                fetch = _module_fetch(path)
                found.setdefault(id(tensor), (f"{name}.{path}", lambda _, f=fetch, read=read: f(read())))
    return found


def static_state(fn: Any, module: torch.nn.Module | None) -> tuple[Any, ...]:
    """Python numbers, flags and strings that the program reads from its variables and modules.

    A part of the cache key: changing one of them (``model.temperature = 0.5``,
    ``model.eval()``) compiles a new graph instead of using a stale one.
    """
    state: list[Any] = []
    modules = [module] if module is not None else []
    for _, read in variables(fn):
        value = _read(read)
        if isinstance(value, torch.nn.Module):
            modules.append(value)
        elif isinstance(value, _PRIMITIVE):
            state.append(value)
    for root in modules:
        for part in root.modules():
            state.extend(v for v in vars(part).values() if isinstance(v, _PRIMITIVE))
    return tuple(state)


def _module_tensors(module: torch.nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters(remove_duplicate=False)
    yield from module.named_buffers(remove_duplicate=False)


def _module_fetch(path: str) -> Fetch:
    parts = path.split(".")
    return lambda module: reduce(getattr, parts, module)


def _read(read: Callable[[], Any]) -> Any:
    try:
        return read()
    except (ValueError, KeyError):  # an empty cell, a deleted global
        return None


def _cell_reader(cell: Any) -> Callable[[], Any]:
    return lambda: cell.cell_contents


def _global_reader(scope: dict[str, Any], name: str) -> Callable[[], Any]:
    return lambda: scope[name]
