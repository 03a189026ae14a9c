"""Whether an object holds a traced tensor somewhere inside."""

from __future__ import annotations

import gc
from types import CellType, FunctionType, ModuleType
from typing import Any

from propc.frontend.environment.code_names import PRIMITIVE
from propc.util.torch_private import FakeTensor

# Objects to look at behind each cache. A choice, which bounds what a cache of large structures costs a trace.
_MOST = 10_000


def reaches_traced(value: Any) -> bool:
    """Whether a traced tensor is in an object, at any depth: in attributes, containers, closures, iterators."""
    todo: list[Any] = [value]
    seen: dict[int, Any] = {}
    while todo and len(seen) < _MOST:
        each = todo.pop()
        if isinstance(each, FakeTensor):
            return True
        if id(each) not in seen and not isinstance(each, (type, ModuleType, *PRIMITIVE)):
            seen[id(each)] = each  # kept, so that no other gets its id
            todo += _inside(each)
    return False


def _inside(value: Any) -> list[Any]:
    if isinstance(value, FunctionType):  # not its globals
        cells = [cell.cell_contents for cell in value.__closure__ or () if cell != CellType()]
        return [*cells, value.__defaults__, value.__kwdefaults__]
    return gc.get_referents(value)
