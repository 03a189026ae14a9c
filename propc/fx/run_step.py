"""Running one step of a program on values."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch.fx


def run_step(
    node: torch.fx.Node, values: Mapping[torch.fx.Node, Any], function: Callable[..., Any] | None = None
) -> Any:
    """What a step gives, called as the user's code calls it: with lists and dicts of its own, which it may change.

    Args:
        function: in the place of the step's own.
    """
    args, kwargs = _filled(node.args, values), _filled(node.kwargs, values)
    if function is not None:
        return function(*args, **kwargs)
    if node.op == "call_method":
        return getattr(args[0], str(node.target))(*args[1:], **kwargs)
    return node.target(*args, **kwargs)  # type: ignore[operator]


def _filled(value: Any, values: Mapping[torch.fx.Node, Any]) -> Any:
    if isinstance(value, torch.fx.Node):
        return values[value]
    if isinstance(value, (list, tuple)) and not isinstance(value, torch.Size):
        items = [_filled(each, values) for each in value]
        if hasattr(value, "_fields"):
            return type(value)(*items)
        return items if isinstance(value, list) else tuple(items)
    if isinstance(value, dict):
        return {key: _filled(each, values) for key, each in value.items()}
    if isinstance(value, slice):
        return slice(*(_filled(each, values) for each in (value.start, value.stop, value.step)))
    return value
