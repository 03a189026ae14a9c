"""Code of segments: when two are the same, and how one becomes a callable."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
import torch.fx

from propc.fx.operations import Region
from propc.fx.program import type_of
from propc.util.torch_private import pytree

_WRITABLE = {*torch.fx.node.base_types, type(None), type(...), torch.Size}  # no subclasses: np.float64 is a float


def structure(
    body: Sequence[torch.fx.Node], arguments: Sequence[torch.fx.Node], results: Sequence[torch.fx.Node]
) -> Hashable:
    """A key that is equal for equal code on equally shaped arguments."""
    number = {node: i for i, node in enumerate((*arguments, *body))}
    steps = tuple(
        (node.op, node.target, _key(node.args, number), _key(node.kwargs, number), node.meta.get("context"))
        for node in body
    )
    kinds = tuple((k.shape, k.dtype, k.device) if (k := type_of(node)) is not None else None for node in arguments)
    return kinds, steps, tuple(number[node] for node in results)


def key_of(graph: torch.fx.Graph) -> Hashable:
    """The same of a whole graph."""
    body = [node for node in graph.nodes if node.op not in ("placeholder", "output")]
    ends = pytree.tree_leaves([node.args for node in graph.find_nodes(op="output")])
    return structure(body, graph.find_nodes(op="placeholder"), [n for n in ends if isinstance(n, torch.fx.Node)])


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
    except TypeError:  # an argument without a hash
        return "object", id(value)
    return type(value).__name__, value


def build(
    name: str,
    body: Sequence[torch.fx.Node],
    arguments: Sequence[torch.fx.Node],
    results: Sequence[torch.fx.Node],
    instead: Mapping[torch.fx.Node, Callable[..., Any]] = MappingProxyType({}),
) -> torch.fx.GraphModule:
    """A module that runs `body` on `arguments` and returns a tuple of `results`; some steps call a function instead."""
    graph = torch.fx.Graph()
    copies = {node: graph.placeholder(f"a{i}") for i, node in enumerate(arguments)}
    held: dict[str, Any] = {}
    for node in body:
        copy = graph.node_copy(node, lambda n: copies[n])
        if node in instead:
            copy.op, copy.target = "call_function", _callable(instead[node])
        copy.args, copy.kwargs = _hold_objects((copy.args, copy.kwargs), graph, held, copy)
        if node.meta.get("context") is not None:
            _in_region(copy, node.meta["context"])
        copies[node] = copy
    graph.output(tuple(copies[node] for node in results))
    return torch.fx.GraphModule(held, graph, class_name=name)


def _hold_objects(value: Any, graph: torch.fx.Graph, held: dict[str, Any], before: torch.fx.Node) -> Any:
    """Replace objects that cannot be written as code (functions, generators) by attributes of the module."""

    def hold(leaf: Any) -> Any:
        if isinstance(leaf, torch.fx.Node) or type(leaf) in _WRITABLE:
            return leaf
        name = f"object{len(held)}"
        held[name] = leaf
        with graph.inserting_before(before), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the attribute is not there yet
            return graph.get_attr(name)

    return torch.fx.node.map_aggregate(value, hold)


def _in_region(node: torch.fx.Node, region: Region) -> None:
    """Let a node run inside the no_grad or autocast region in which it was written."""
    target = node.target
    if node.op == "call_method":
        method = str(target)

        def call(value: Any, *args: Any, **kwargs: Any) -> Any:
            return getattr(value, method)(*args, **kwargs)
    else:
        call = target  # type: ignore[assignment]
    node.op, node.target = "call_function", _inside(region, call)


def _callable(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function with a name that code can use."""

    def run(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    run.__name__ = run.__qualname__ = "instead"
    run.__module__ = __name__
    return run


def _inside(region: Region, call: Callable[..., Any]) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        with region.entered():
            return call(*args, **kwargs)

    run.__name__ = run.__qualname__ = "grad" if region.grad else "no_grad"
    run.__module__ = __name__
    return run
