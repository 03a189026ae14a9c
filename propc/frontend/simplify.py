"""Small clean-ups of a traced program: needless broadcasts and dependences, writes, constants, dead code.

`torch.distributions` constructors broadcast their arguments and turn numbers into
tensors at every call; both are known when the program is traced.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.fx
from torch import Tensor

from propc.frontend.functional_writes import write_as_values
from propc.frontend.kept_values import keep_apart
from propc.fx import operations
from propc.fx.program import Leaf, Program, mark_of, type_of
from propc.util.torch_private import first_node

_MAKERS = frozenset({torch.tensor, torch.zeros, torch.ones, torch.full, torch.eye, torch.arange, torch.linspace})
_LIKE: dict[str, Callable[..., Tensor]] = {  # these read the shape of a tensor, not its values
    "zeros_like": torch.zeros,
    "ones_like": torch.ones,
    "empty_like": torch.empty,
    "rand_like": torch.rand,
    "randn_like": torch.randn,
    "new_zeros": torch.zeros,
    "new_ones": torch.ones,
    "new_empty": torch.empty,
}
_AFTER = {"expand_as": "expand", "view_as": "view", "reshape_as": "reshape"}
_SHAPERS = frozenset({"expand", "view", "reshape", "unsqueeze"})


def simplify(program: Program) -> Program:
    """Remove broadcasts that change nothing, make writes values, compute constants once, drop what nobody uses."""
    for node in list(program.graph.nodes):
        _drop_broadcast(program.graph, node)
        _drop_likeness(program.graph, node)
        _drop_model(program.graph, node)
    program = write_as_values(
        program
    )  # behind the broadcasts, which stand between a tensor and what is written into it
    keep_apart(program)
    if not program.mutates:  # a constant that is written into must be made anew at every call
        program = _fold_constants(program)
    _drop_dead(program.graph)
    (returned,) = next(n for n in program.graph.nodes if n.op == "output").args
    return replace(program, outputs=returned)


def _drop_broadcast(graph: torch.fx.Graph, node: torch.fx.Node) -> None:
    """``broadcast_tensors(a, b)[i]`` is argument i, or its expansion."""
    source = node.args[0] if node.target is operations.getitem else None
    if not isinstance(source, torch.fx.Node) or source.target is not torch.broadcast_tensors:
        return
    argument, kind = source.args[node.args[1]], type_of(node)  # type: ignore[index]
    if not isinstance(argument, torch.fx.Node) or kind is None:
        return
    known = type_of(argument)
    if known is None or known.shape != kind.shape:
        with graph.inserting_before(node):
            expanded = graph.call_method("expand", (argument, kind.shape))
        expanded.meta.update(node.meta)
        argument = expanded
    node.replace_all_uses_with(argument)


def _drop_likeness(graph: torch.fx.Graph, node: torch.fx.Node) -> None:
    """``zeros_like(x)`` is ``zeros`` of a known shape, and depends on no site."""
    name = operations.step_name(node)
    kind = type_of(node)
    if name not in _LIKE or kind is None or kind.requires_grad or node.kwargs.keys() - {"dtype", "device"}:
        return
    with graph.inserting_before(node):
        made = graph.call_function(_LIKE[name], (kind.shape,), {"dtype": kind.dtype, "device": kind.device})
    made.meta.update(node.meta)
    node.replace_all_uses_with(made)
    graph.erase_node(node)


def _drop_model(graph: torch.fx.Graph, node: torch.fx.Node) -> None:
    """``x.expand_as(y)`` is ``x.expand(...)`` to a known shape, and depends on y no more; to its own shape, it is x."""
    plain, kind = _AFTER.get(str(node.target)), type_of(node)
    if node.op != "call_method" or plain is None or kind is None or len(node.args) != 2 or node.kwargs:
        return
    source = node.args[0]
    assert isinstance(source, torch.fx.Node)
    known = type_of(source)
    if known is not None and known.shape == kind.shape and plain == "expand":
        node.replace_all_uses_with(source)
    else:
        node.target, node.args = plain, (source, kind.shape)


def _fold_constants(program: Program) -> Program:
    graph, leaves = program.graph, list(program.leaves)
    known: dict[Any, torch.fx.Node] = {}
    values: dict[torch.fx.Node, Tensor] = {}
    anchor = leaves[-1].node if leaves else first_node(graph)
    for node in list(graph.nodes):
        if not _foldable(node, values) or node.meta.get("memory") in program.returned_memory:
            continue  # what is returned belongs to the caller
        key = (node.target, repr(node.args), repr(node.kwargs))
        if key not in known:
            value = _compute(node, values)
            with graph.inserting_after(anchor):
                leaf = anchor = graph.placeholder(f"leaf{len(leaves)}")
            leaf.meta.update(node.meta)
            kind = type_of(node)
            assert kind is not None
            leaves.append(Leaf(_label(node, value), leaf, kind, _always(value), constant=True))
            known[key], values[leaf] = leaf, value
        node.replace_all_uses_with(known[key])
        graph.erase_node(node)
    kept = tuple(leaf for leaf in leaves if leaf.fetch is None or leaf.node.users)
    for unused in set(leaves).difference(kept):
        graph.erase_node(unused.node)
    return replace(program, leaves=kept)


def _always(value: Tensor) -> Callable[[Any], Tensor]:
    return lambda _: value


def _foldable(node: torch.fx.Node, values: dict[torch.fx.Node, Tensor]) -> bool:
    kind = type_of(node)
    if kind is None or kind.requires_grad or mark_of(node) is not None:
        return False
    if node.op == "call_function" and node.target in _MAKERS:
        return not node.all_input_nodes
    return node.op == "call_method" and node.target in _SHAPERS and all(n in values for n in node.all_input_nodes)


def _compute(node: torch.fx.Node, values: dict[torch.fx.Node, Tensor]) -> Tensor:
    args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), lambda n: values[n])
    target = node.target
    with torch.no_grad():
        result = getattr(args[0], target)(*args[1:], **kwargs) if isinstance(target, str) else target(*args, **kwargs)
    assert isinstance(result, Tensor)
    return result


def _label(node: torch.fx.Node, value: Tensor) -> str:
    """A readable name: the number itself where all elements are equal."""
    if value.numel() and not value.is_complex() and not value.is_meta:
        value = value[tuple(slice(None) if stride else slice(1) for stride in value.stride())]  # each element once
        first = value[(0,) * value.dim()]
        if bool((value == first).all()):
            return f"{first.item():g}"
    return operations.name_of(node.target) if callable(node.target) else str(node.target)


def _drop_dead(graph: torch.fx.Graph) -> None:
    for node in reversed(list(graph.nodes)):
        if not node.users and not _effectful(node):
            graph.erase_node(node)


def _effectful(node: torch.fx.Node) -> bool:
    """Whether a node must stay though nobody uses it; draws stay to keep the random stream."""
    if node.op in ("placeholder", "output") or mark_of(node) is not None or operations.is_random(node):
        return True
    return bool(node.meta.get("writes"))
