"""Writes into tensors of the program's own, as values: ``x += y`` and ``x[i] = y`` are new tensors to all behind them.

What runs again (plates, alternatives, chunks, checkpoints) must not write into what it has read before. So where a
tensor that the program has made is written into as a whole, or through indices of numbers and slices, each write
becomes the tensor as it is after it. Other writes, such as those through other views, stay as they are.
"""

from __future__ import annotations

import operator
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import torch
import torch.fx
from torch import Tensor

from propc.fx.assignment import assigned, copied, filled, replaced, zeroed
from propc.fx.operations import after, getitem, step_name
from propc.fx.program import Program, mark_of, type_of
from propc.types import TensorType

FxNode = torch.fx.Node
_ALL = object()  # in place of an index
_WRITES: dict[str, Callable[..., Any]] = {"fill_": filled, "copy_": copied, "zero_": zeroed}
# Methods that with an underscore write what they give without one; none draws random numbers.
_PURE = frozenset(
    "abs acos add addcdiv addcmul addmm asin atan atan2 baddbmm ceil clamp clamp_max clamp_min copysign cos cosh "
    "cumprod cumsum deg2rad digamma div divide erf erfc erfinv exp exp2 expm1 fix floor floor_divide fmod frac "
    "hypot index_add index_copy index_fill lerp lgamma log log10 log1p log2 logical_and logical_not logical_or "
    "logit masked_fill masked_scatter mul multiply nan_to_num neg negative pow reciprocal relu remainder renorm "
    "round rsqrt scatter scatter_add sgn sigmoid sign sin sinc sinh sqrt square sub subtract tan tanh tril triu "
    "true_divide trunc xlogy".split()
)


def write_as_values(program: Program) -> Program:
    """The program with values in place of writes where nobody can tell the difference. The graph is changed."""
    if not program.mutates:
        return program
    touched: dict[int, list[FxNode]] = defaultdict(list)
    for node in program.graph.nodes:
        for memory in {node.meta.get("memory"), *node.meta.get("written", ())} - {None}:
            touched[memory].append(node)
    for nodes in touched.values():
        if any(node.meta.get("writes") for node in nodes):
            _Writes(program.graph, nodes).replace()
    return replace(program, mutates=any(node.meta.get("writes") for node in program.graph.nodes))


class _Writes:
    """What happens to one piece of memory, in program order."""

    def __init__(self, graph: torch.fx.Graph, nodes: list[FxNode]) -> None:
        self.graph, self.nodes = graph, nodes
        self.places: dict[FxNode, Any] = {nodes[0]: _ALL}  # nodes that stand for the tensor, or for an index of it
        self.made: dict[FxNode, Callable[..., Any]] = {}  # what each write comes to, as a function of its arguments

    def replace(self) -> None:
        if not self._is_simple():
            return
        now = self.nodes[0]
        for node in self.nodes[1:]:
            if node in self.made:
                now = self._written(node, now)
            elif node.target is after:
                again = self._part(now, self.places[node], node)
                node.replace_all_uses_with(again)
                self.graph.erase_node(node)

    def _is_simple(self) -> bool:
        """Whether the program has made the tensor, every write is known, and no view is read both before and behind."""
        owner = self.nodes[0]
        mark = mark_of(owner)
        drawn = mark is None or mark.kind == "site"
        if owner.op == "placeholder" or not drawn or type_of(owner) is None or owner.meta.get("writes"):
            return False
        for node in self.nodes[1:]:
            source = _first(node)
            if node.target is after:
                if source not in self.places:  # a view that `_part` cannot make again
                    return False
                self.places[node] = self.places[source]
            elif node.meta.get("writes"):
                made = self._function(node)
                if made is None:
                    return False
                self.made[node], self.places[node] = made, self.places[source]
            elif mark_of(node) is not None:
                return False
            elif node.target is getitem and self.places.get(source) is _ALL and _is_static(node.args[1]):
                self.places[node] = _ALL if _is_all(node.args[1]) else node.args[1]
        return True

    def _function(self, node: FxNode) -> Callable[..., Any] | None:
        """A write as a function; None where it is not known, or writes into another view than an index."""
        source = _first(node)
        if source not in self.places or len(node.meta["written"]) != 1:
            return None
        kind, region = _kind(source), node.meta.get("context")
        if region is not None and not region.grad and kind.requires_grad:  # torch's gradient ignores such a write
            return None
        others = [other for other in node.all_input_nodes if other is not source]
        name = step_name(node)
        if node.target is operator.setitem:
            return replaced if _is_all(node.args[1]) else assigned
        if name in _WRITES and node.op == "call_method":
            return _WRITES[name]
        if name.endswith("_") and name[:-1] in _PURE and node.op == "call_method":
            return getattr(Tensor, name[:-1]) if _keeps_type(kind, others) else None
        if node.kwargs.get("inplace") is True and node.op == "call_function":
            return node.target  # type: ignore[return-value]
        return None

    def _written(self, write: FxNode, now: FxNode) -> FxNode:
        """The tensor as it is after a write, which comes to be the value of what it has written into."""
        place = self.places[write]
        like = next((user for user in write.users if user.target is after), write)
        kind = type_of(write) or type_of(like) or _kind(_first(write))  # the last where nobody reads it any more
        kwargs = {key: value for key, value in write.kwargs.items() if key != "inplace"}
        with self.graph.inserting_before(write):
            value = self.graph.call_function(self.made[write], (self._part(now, place, write), *write.args[1:]), kwargs)
            if isinstance(write.target, str) and write.target.removesuffix("_") in _PURE:
                value.op, value.target = "call_method", write.target.removesuffix("_")
        _describe(value, write, kind)
        write.replace_all_uses_with(value)
        if place is not _ALL:
            before = _kind(now)
            with self.graph.inserting_before(write):
                value = self.graph.call_function(assigned, (now, place, value))
            _describe(value, write, replace(before, requires_grad=before.requires_grad or kind.requires_grad))
        self.graph.erase_node(write)
        return value

    def _part(self, now: FxNode, place: Any, before: FxNode) -> FxNode:
        """The tensor, or what it has at an index."""
        if place is _ALL:
            return now
        with self.graph.inserting_before(before):
            part = self.graph.call_function(getitem, (now, place))
        kind = next(kind for node, at in self.places.items() if at is place and (kind := type_of(node)) is not None)
        _describe(part, before, replace(kind, requires_grad=_kind(now).requires_grad))
        return part


def _first(node: FxNode) -> Any:
    """The tensor that a step reads or writes first; None if it has none."""
    return next((arg for arg in node.args[:1] if isinstance(arg, FxNode)), None)


def _kind(node: Any) -> TensorType:
    kind = type_of(node)
    assert kind is not None
    return kind


def _describe(made: FxNode, like: FxNode, kind: TensorType) -> None:
    made.meta.update(type=kind, where=like.meta["where"], context=like.meta.get("context"), writes=False)
    made.meta.update(rough=like.meta.get("rough", False), memory=id(made))


def _is_all(index: Any) -> bool:
    """Whether an index leaves nothing of a tensor as it was."""
    items = index if isinstance(index, tuple) else (index,)
    return all(item is ... or (isinstance(item, slice) and item == slice(None)) for item in items)


def _is_static(index: Any) -> bool:
    """Whether an index is of numbers and slices of numbers, so that what it gives is a view."""
    items = index if isinstance(index, tuple) else (index,)
    numbers = (part for item in items for part in ((item.start, item.stop) if isinstance(item, slice) else (item,)))
    return all(part is ... or part is None or type(part) is int for part in numbers) and None not in items


def _keeps_type(kind: TensorType, others: Iterable[FxNode]) -> bool:
    """Whether an operation without underscore gives what the other writes: numbers beside it may be of a wider type."""
    kinds = [type_of(other) for other in others]
    return all(
        other is not None
        and (other.dtype == torch.bool or not other.shape or torch.promote_types(kind.dtype, other.dtype) == kind.dtype)
        for other in kinds
    )
