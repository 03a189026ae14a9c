"""Costs in a traced program: which returned values are costs, and of which terms they are sums."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
import torch.fx

from propc.fx import operations
from propc.fx.program import Mark, Program, mark_of, type_of
from propc.types import Turn

_SUMS = frozenset(
    {
        "add",
        "sub",
        "__add__",
        "__radd__",
        "__sub__",
        "__rsub__",
        "__iadd__",
        "__isub__",
        "add_",
        "sub_",
        "rsub",
        "subtract",
    }
)
_SCALES = frozenset(
    {
        "mul",
        "div",
        "__mul__",
        "__rmul__",
        "__truediv__",
        "truediv",
        "mul_",
        "div_",
        "true_divide",
        "multiply",
        "divide",
        "__imul__",
        "__itruediv__",
    }
)
_PASSES = frozenset({"neg", "__neg__", "negative", "clone", "contiguous"})
_REDUCES = frozenset({"sum", "mean"})
_SHAPES = frozenset({"flatten", "reshape", "view", "squeeze", "unsqueeze", "transpose", "permute", "movedim"})
# Operations that are known to give new memory, for sums that begin with one and go on in place.
_FRESH = frozenset(
    {
        "clone",
        "neg",
        "negative",
        "square",
        "pow",
        "__pow__",
        "sqrt",
        "exp",
        "log",
        "abs",
        "sin",
        "cos",
        "tanh",
        "sigmoid",
        "softplus",
        "relu",
        "norm",
        "where",
        "matmul",
        "__matmul__",
        "logsumexp",
    }
)


def returned_costs(program: Program) -> dict[torch.fx.Node, str]:
    """The returned values that are costs, with a name each: floating point, shape [batch] or a scalar.

    A cost of a plate may be returned as it is, [batch, n].
    """
    found: dict[torch.fx.Node, str] = {}
    for position, (value, path) in enumerate(zip(program.outputs, program.paths)):
        kind = None if position in program.inner else type_of(value)
        if kind is not None and kind.dtype.is_floating_point and (len(kind.shape) <= 1 or in_plates(value)):
            found.setdefault(value, _name(path))
    return found


def aside(program: Program) -> tuple[int, ...]:
    """Which returned tensors depend on a site without being costs, by their position."""
    touched = tainted(program)
    returned = program.outputs
    costs = returned_costs(program)
    return tuple(i for i, v in enumerate(returned) if v in touched and v not in costs)


def tainted(program: Program) -> set[torch.fx.Node]:
    """The torch.fx nodes that depend on a site."""
    touched: set[torch.fx.Node] = set()
    for node in program.graph.nodes:
        mark = mark_of(node)
        if (mark is not None and mark.kind == "site") or any(n in touched for n in node.all_input_nodes):
            touched.add(node)
    return touched


def in_plates(node: torch.fx.Node) -> bool:
    """Whether a node is a cost with a value for each element of a plate."""
    mark = mark_of(node)
    return mark is not None and mark.kind == "cost" and bool(mark.dims)


def additive_terms(program: Program) -> tuple[dict[torch.fx.Node, str], set[torch.fx.Node]]:
    """Take the returned costs apart along additions.

    A value is taken apart where it is a sum, difference, negation, constant multiple, or a
    reduced stack of [batch]-shaped parts, and nothing else uses it. Costs in plates may be summed over these, too.

    Returns:
        the terms with their names, and the torch.fx nodes that add them up.
    """
    costs = returned_costs(program)
    touched = tainted(program)
    returned = set(program.outputs)
    apart = _summed_apart(program, touched)
    adders: set[torch.fx.Node] = set()
    wanted: dict[torch.fx.Node, str] = dict(costs)
    terms: dict[torch.fx.Node, str] = {}
    for node in reversed(list(program.graph.nodes)):
        if node not in wanted:
            continue
        owned = all(user in adders or user.op == "output" for user in node.users)
        owned = owned and (node in costs or node not in returned)
        parts = None
        if owned and not _is_named(node):
            parts = (
                [n for n in node.all_input_nodes if n in touched] if node in apart else _parts(node, touched, adders)
            )
        if parts is None:
            if node in touched or node in costs or _is_named(node):
                terms[node] = wanted[node]
            continue
        adders.add(node)
        for part in parts:
            wanted.setdefault(part, wanted[node])
    terms = {_scaled(node, adders): name for node, name in terms.items()}
    return _numbered(program, terms), adders - terms.keys()


def _scaled(node: torch.fx.Node, adders: set[torch.fx.Node]) -> torch.fx.Node:
    """The term with the constant factors behind it, which belong to it as well."""
    while not _is_named(node) and len(node.users) == 1:
        (user,) = node.users
        if user not in adders or _shape(user) != _shape(node) or _operation(user) not in _SCALES | _PASSES:
            break
        node = user
    return node


def with_terms(program: Program, terms: dict[torch.fx.Node, str], adders: Iterable[torch.fx.Node]) -> Program:
    """A copy of the program in which every term passes a mark on its way to the returned value.

    Other uses of the same value read it as it was. Named costs that are no terms lose their mark.
    """
    graph = torch.fx.Graph()
    old_to_new: dict[torch.fx.Node, torch.fx.Node] = {}
    graph.graph_copy(program.graph, old_to_new)
    adding = {old_to_new[n] for n in adders}
    results: dict[Any, torch.fx.Node] = {}
    for node, name in terms.items():
        copy = old_to_new[node]
        with graph.inserting_after(copy):
            cost = graph.call_function(operations.marked, (copy,))
        known = mark_of(copy)
        term = replace(known, kind="term") if known is not None and known.kind == "cost" else Mark("term", name)
        cost.meta.update(copy.meta, mark=term, rough=False, context=None)
        copy.replace_all_uses_with(cost, delete_user_cb=adding.__contains__)
        results[node] = cost
    unmarked: dict[torch.fx.Node, torch.fx.Node] = {}
    for node in list(graph.nodes):
        mark = mark_of(node)
        if mark is not None and mark.kind == "cost":
            (value,) = node.all_input_nodes
            unmarked[node] = value
            node.replace_all_uses_with(value)
            graph.erase_node(node)
    outputs = tuple(
        results.get(v, unmarked.get(old_to_new[v], old_to_new[v])) if isinstance(v, torch.fx.Node) else v
        for v in program.outputs
    )
    graph.output(tuple(v for v in outputs if isinstance(v, torch.fx.Node)))
    leaves = tuple(replace(leaf, node=old_to_new[leaf.node]) for leaf in program.leaves)
    return replace(program, graph=graph, outputs=outputs, leaves=leaves)


def _parts(node: torch.fx.Node, touched: set[torch.fx.Node], adders: set[torch.fx.Node]) -> list[torch.fx.Node] | None:
    """The addends of a sum, each of shape [batch]; None where the value is no sum."""
    kind, name = type_of(node), _operation(node)
    if kind is None or len(kind.shape) != 1:
        return None
    if name == "after":  # the result of an operation in place, read again
        return [node.all_input_nodes[0]] if node.args[0] is node.args[1] else None
    random = [n for n in node.all_input_nodes if n in touched]
    if name in _REDUCES and len(random) == 1:
        inner = _stacked(random[0], node, touched)
        if inner is None:
            return None
        parts, between = inner
        adders.update(between)
        return parts
    linear = name in _SUMS or name in _PASSES or (name in _SCALES and _scales(node, random))
    same = all((t := type_of(n)) is not None and (t.shape, t.dtype) == (kind.shape, kind.dtype) for n in random)
    plain = not node.kwargs and (not _writes(name) or _is_private(node.all_input_nodes[0], touched))
    return node.all_input_nodes if linear and random and same and plain else None


def _summed_apart(program: Program, touched: set[torch.fx.Node]) -> set[torch.fx.Node]:
    """The steps that add up costs in plates, and nothing else that depends on a site."""
    found: set[torch.fx.Node] = set()
    for node in program.graph.nodes:
        random = [n for n in node.all_input_nodes if n in touched]
        if random and all(n in found or in_plates(n) for n in random) and _is_linear(node, random):
            found.add(node)
    return found


def _is_linear(node: torch.fx.Node, random: list[torch.fx.Node]) -> bool:
    """Whether a step is linear in what depends on a site."""
    name = _operation(node)
    if name in _REDUCES | _SHAPES:
        return len(random) == 1
    shape = _shape(node)
    plain = all(_shape(n) == shape for n in random) and not node.kwargs and not _writes(name)
    return plain and (name in _SUMS or name in _PASSES or (name in _SCALES and _scales(node, random)))


def _writes(name: str) -> bool:
    """Whether an operation of this name works in place."""
    return name.startswith("__i") or (name.endswith("_") and not name.endswith("__"))


def _is_private(node: torch.fx.Node, touched: set[torch.fx.Node]) -> bool:
    """Whether what is written into has no reader but the writer, or is no term.

    A term is copied on its way through its cost, so nobody else may wait for a write into it.
    """
    while node in touched:
        name = _operation(node)
        if len(node.users) != 1:
            return False
        if name != "after" and not _writes(name):
            return name in _FRESH | _SUMS | _SCALES | _REDUCES
        node = node.all_input_nodes[0]
    return True


def _scales(node: torch.fx.Node, random: list[torch.fx.Node]) -> bool:
    """Whether only one factor depends on a site, and it is not the divisor."""
    divides = "div" in _operation(node)
    if node.kwargs or len(node.args) != 2:
        return False
    return len(random) == 1 and (not divides or node.args[0] is random[0]) and node.args.count(random[0]) == 1


def _stacked(
    node: torch.fx.Node, reduction: torch.fx.Node, touched: set[torch.fx.Node]
) -> tuple[list[torch.fx.Node], list[torch.fx.Node]] | None:
    """The parts of ``stack(parts, d)``, perhaps times a constant, that is reduced over d."""
    between = []
    while _operation(node) in _SCALES and len(node.users) == 1:
        random = [n for n in node.all_input_nodes if n in touched]
        if not _scales(node, random):
            return None
        between.append(node)
        node = random[0]
    dim = reduction.args[1] if len(reduction.args) > 1 else reduction.kwargs.get("dim")
    shape = _shape(node)
    if _operation(node) != "stack" or len(node.users) != 1 or shape is None or len(shape) != 2 or dim is None:
        return None
    stack_dim = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
    if isinstance(dim, (tuple, list)):
        dim = dim[0] if len(dim) == 1 else None
    if not isinstance(dim, int) or not isinstance(stack_dim, int) or dim % 2 != stack_dim % 2:
        return None
    return list(node.all_input_nodes), [*between, node]


def _is_named(node: torch.fx.Node) -> bool:
    mark = mark_of(node)
    return mark is not None and mark.kind == "cost"


def _operation(node: torch.fx.Node) -> str:
    if node.op not in ("call_function", "call_method"):
        return ""
    return operations.step_name(node)


def _shape(node: torch.fx.Node) -> tuple[int, ...] | None:
    kind = type_of(node)
    return None if kind is None else kind.shape


def _name(path: str) -> str:
    """A readable name from a pytree path: ``['loss']`` is loss, ``[0]`` is cost0."""
    words = re.findall(r"\w+", path)
    if not words:
        return "cost"
    return f"cost{words[0]}" if len(words) == 1 and words[0].isdigit() else ".".join(words)


def _numbered(program: Program, terms: dict[torch.fx.Node, str]) -> dict[torch.fx.Node, str]:
    """In program order; the user's own names where given, numbers where one cost has several terms.

    The terms of a scan's step that stands for many have as many numbers.
    """
    ordered = {n: terms[n] for n in program.graph.nodes if n in terms}
    turns = _turns(program)
    counts: dict[str, int] = {}
    inside: dict[tuple[str, Turn | None], int] = {}
    for node, name in ordered.items():
        counts[name] = counts.get(name, 0) + 1
        inside[name, turns[node]] = inside.get((name, turns[node]), 0) + 1
    seen: dict[str, int] = {}
    left = dict(inside)
    for node, name in ordered.items():
        mark, turn, number = mark_of(node), turns[node], seen.get(name, 0)
        step, more = inside[name, turn], 0 if turn is None else turn.last - turn.first
        if mark is not None and mark.kind == "cost":
            ordered[node] = mark.name
        elif counts[name] > 1:
            label = f"{name}.{number}"
            ordered[node] = f"{label}..{name}.{number + step * more}" if more else label
        left[name, turn] -= 1
        seen[name] = number + 1 + (0 if left[name, turn] else step * more)
    return ordered


def _turns(program: Program) -> dict[torch.fx.Node, Turn | None]:
    """The step of a scan in which each torch.fx node stands."""
    found: dict[torch.fx.Node, Turn | None] = {}
    turn: Turn | None = None
    for node in program.graph.nodes:
        mark = mark_of(node)
        if mark is not None and mark.kind == "turn":
            turn = mark.turn
        found[node] = turn
    return found
