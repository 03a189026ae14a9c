"""Code of segments: when two are the same, and how one becomes a callable."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
import torch.fx

from propc.tracing.program import type_of


def structure(body: Sequence[torch.fx.Node], arguments: Sequence[torch.fx.Node],
              results: Sequence[torch.fx.Node]) -> Hashable:
    """A key that is equal for equal code on equally shaped arguments."""
    number = {node: i for i, node in enumerate((*arguments, *body))}
    steps = tuple(
        (node.op, node.target, _key(node.args, number), _key(node.kwargs, number), node.meta.get("context"))
        for node in body
    )
    kinds = tuple((k.shape, k.dtype, k.device) if (k := type_of(node)) is not None else None for node in arguments)
    return kinds, steps, tuple(number[node] for node in results)


def _key(value: Any, number: dict[torch.fx.Node, int]) -> Hashable:
    if isinstance(value, torch.fx.Node):
        return "node", number[value]
    if isinstance(value, (tuple, list)):
        return type(value).__name__, tuple(_key(v, number) for v in value)
    if isinstance(value, dict):
        return tuple((k, _key(v, number)) for k, v in value.items())
    if isinstance(value, slice):
        return "slice", _key((value.start, value.stop, value.step), number)
    try:
        hash(value)
    except TypeError:
        return "object", id(value)
    return type(value).__name__, value


def build(name: str, body: Sequence[torch.fx.Node], arguments: Sequence[torch.fx.Node],
          results: Sequence[torch.fx.Node]) -> torch.fx.GraphModule:
    """A module that runs `body` on `arguments` and returns a tuple of `results`."""
    graph = torch.fx.Graph()
    copies = {node: graph.placeholder(f"a{i}") for i, node in enumerate(arguments)}
    for node in body:
        copy = graph.node_copy(node, lambda n: copies[n])
        if node.meta.get("context") is not None:
            _in_region(copy, node.meta["context"])
        copies[node] = copy
    graph.output(tuple(copies[node] for node in results))
    return torch.fx.GraphModule({}, graph, class_name=name)


def _in_region(node: torch.fx.Node, region: tuple[Any, ...]) -> None:
    """Let a node run inside the no_grad or autocast region in which it was written."""
    grad, autocast = region
    target = node.target
    if node.op == "call_method":
        method = str(target)

        def call(value: Any, *args: Any, **kwargs: Any) -> Any:
            return getattr(value, method)(*args, **kwargs)
    else:
        call = target  # type: ignore[assignment]
    node.op, node.target = "call_function", _region(call, grad, autocast)


def _region(call: Callable[..., Any], grad: bool, autocast: tuple[str, torch.dtype, bool] | None
            ) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        with torch.set_grad_enabled(grad):
            if autocast is None:
                return call(*args, **kwargs)
            device, dtype, cache = autocast
            with torch.autocast(device, dtype=dtype, cache_enabled=cache):
                return call(*args, **kwargs)

    run.__name__ = run.__qualname__ = "grad" if grad else "no_grad"
    run.__module__ = __name__
    return run
