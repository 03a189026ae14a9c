"""How a program uses the parameters of a weighting target: where the gradient of a single sample is cheap.

The gradient of one sample in a weight matrix is an outer product, of what the layer read and of the cotangent on
what it made; in a tensor that is spread over the batch, such as a bias, it is the cotangent on the spread tensor.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.fx

from propc.fx.operations import is_random, step_name
from propc.fx.program import type_of
from propc.runtime.batching.table import is_by_element
from propc.util.torch_private import FakeTensorMode

Node = torch.fx.Node
Shape = tuple[int, ...]

_TRANSPOSED = frozenset({"t", "T", "mT", "transpose", "swapaxes", "permute"})  # of a matrix, but for no-ops
_PRODUCTS = frozenset({"matmul", "mm", "__matmul__"})
_SPREAD = frozenset({"broadcast_to", "expand", "expand_as"})


@dataclass(frozen=True)
class Spread:
    """A value that is common to all samples, spread over the batch by a step."""

    step: Node
    operand: Node


@dataclass(frozen=True)
class Added:
    """One that is added to what a step makes, as the bias of a layer."""

    step: Node
    operand: Node


@dataclass(frozen=True)
class Product:
    """A matrix that multiplies the rows of another value, or the filters of a convolution its patches.

    Attributes:
        read: that value, [batch, ..., p], of a convolution [batch, channels, height, width].
        target: the matrix itself.
        outputs_first: whether the matrix is [q, p] for a result [batch, ..., q]; else [p, q].
        patches: of a convolution the size, dilation, padding and stride of its patches.
    """

    step: Node
    read: Node
    target: Node
    outputs_first: bool
    patches: tuple[Any, ...] | None = None


Use = Spread | Added | Product


@dataclass(frozen=True)
class Uses:
    """What is known of a program between a target and φ.

    Attributes:
        exact: for each target whose gradients of single samples are cheap, where it, or what is made of it
            for all samples alike, meets rows; nowhere if it has rows itself.
        shared: the steps whose values are common to all samples.
        rows: the nodes that have a row for each sample.
    """

    exact: dict[Node, tuple[Use, ...]]
    shared: tuple[Node, ...]
    rows: frozenset[Node]


def find_uses(code: torch.fx.Graph, targets: Sequence[Node], batch: int, per_sample: bool) -> Uses | None:
    """Uses of the targets; None where it is not known which dimensions are rows, one for each sample.

    Args:
        code: from the targets, some of its placeholders, to φ.
        per_sample: whether targets have rows.
    """
    body = [node for node in code.nodes if node.op not in ("placeholder", "output")]
    if batch < 2 or not all(map(is_pure, body)):
        return None
    common = () if per_sample else targets
    shapes = {node: kind.shape for node in code.nodes if (kind := type_of(node)) is not None}
    length = batch
    if any(batch in (shape if node in common else shape[1:]) for node, shape in shapes.items()):
        length = 1 + sum(map(sum, shapes.values()))
        shapes = _with_rows(code, common, batch, length)
    rows = _rows(code, shapes, length)
    if rows is None:
        return None
    shared = tuple(node for node in body if node not in rows)
    if per_sample:
        return Uses(dict.fromkeys(targets, ()), shared, rows)
    made_of = _origins(targets, shared)
    uses: dict[Node, list[Use] | None] = {target: [] for target in targets}
    for step in body:
        if step in rows:
            _enter(step, made_of, uses)
    cheap = {target: tuple(found) for target, found in uses.items() if found and _is_cheap(target, found)}
    return Uses(cheap, shared, rows)


def _with_rows(code: torch.fx.Graph, common: Sequence[Node], batch: int, length: int) -> dict[Node, Shape]:
    """Shapes if the batch were of another length, which no other dimension has; none if the code does not allow it."""
    found: dict[Node, Shape] = {}
    env: dict[Node, Any] = {}
    with FakeTensorMode() as mode, torch.no_grad():
        for node in code.nodes:
            kind = type_of(node)
            if node.op == "placeholder" and kind is not None:
                longer = kind.shape[:1] == (batch,) and node not in common
                size = (length, *kind.shape[1:]) if longer else kind.shape
                with mode:
                    env[node] = torch.empty(size, dtype=kind.dtype, device=kind.device)
            elif node.op != "output":
                try:
                    env[node] = execute(node, env)
                except Exception:  # sizes that are written out, for one
                    return {}
            if kind is not None:
                shape = found[node] = tuple(env[node].shape)
                if kind.shape != ((batch, *shape[1:]) if shape[:1] == (length,) else shape):
                    return {}
    return found


def _rows(code: torch.fx.Graph, shapes: Mapping[Node, Shape], length: int) -> frozenset[Node] | None:
    """The nodes with a row for each sample; None where a step moves, merges or sums rows."""
    rows: set[Node] = set()
    for node in code.nodes:
        inside = shapes.get(node, ())[:1] == (length,)
        if inside or (node.op != "output" and not rows.isdisjoint(node.all_input_nodes)):
            rows.add(node)
        if node in rows and node in shapes and not inside:
            return None
    ends: Any = code.output_node().args[0]
    return frozenset(rows) if shapes and rows.issuperset(ends) else None


def _origins(targets: Sequence[Node], shared: Sequence[Node]) -> dict[Node, frozenset[Node]]:
    """For every value that is common to all samples, the targets that it is made of."""
    made_of = {target: frozenset({target}) for target in targets}
    for step in shared:
        found: frozenset[Node] = frozenset().union(*(made_of.get(source, ()) for source in step.all_input_nodes))
        made_of[step] = found
    return made_of


def _enter(step: Node, made_of: dict[Node, frozenset[Node]], uses: dict[Node, list[Use] | None]) -> None:
    """Note where a step with a row for each sample reads what is made of targets; None for a way that is not known."""
    for operand in dict.fromkeys(step.all_input_nodes):
        for target in made_of.get(operand, ()):
            known = uses[target]
            use = _use(step, operand, target)
            if known is None or use is None:
                uses[target] = None
            elif use not in known:
                known.append(use)


def _use(step: Node, operand: Node, target: Node) -> Use | None:
    """How a step uses an operand that is made of a target."""
    name = operation(step)
    places = [i for i, value in enumerate(step.args) if value is operand]
    if step.kwargs.get("out") is not None or len(places) + (operand in step.kwargs.values()) != 1:
        return None
    a, b = type_of(operand), type_of(step)
    if a is None or b is None or a.dtype != b.dtype or len(a.shape) > len(b.shape):
        return None
    place = places[0] if places else -1
    if is_by_element(step) or (name in _SPREAD and place == 0):
        return Spread(step, operand) if len(a.shape) < len(b.shape) or a.shape[0] == 1 else None
    if name in ("linear", "conv2d") and (place == 2 or step.kwargs.get("bias") is operand):
        return Added(step, operand)
    if name == "conv2d" and place == 1 and operand is target:
        return _convolution(step, target)
    if name == "addmm" and place == 0 and len(step.args) == 3 and not step.kwargs:
        return Added(step, operand)
    return _product(step, name, place, operand, target)


def _convolution(step: Node, filters: Node) -> Use | None:
    """One of images whose filters all see every channel."""
    kind = type_of(filters)
    padding = _option(step, "padding", 4, 0)
    if _option(step, "groups", 6, 1) != 1 or isinstance(padding, str) or kind is None or len(kind.shape) != 4:
        return None
    patches = (kind.shape[2:], _option(step, "dilation", 5, 1), padding, _option(step, "stride", 3, 1))
    return Product(step, step.args[0], filters, True, patches)  # type: ignore[arg-type]


def _option(step: Node, name: str, place: int, default: Any) -> Any:
    value = step.args[place] if len(step.args) > place else step.kwargs.get(name, default)
    return tuple(value) if isinstance(value, list) else value


def _product(step: Node, name: str, place: int, operand: Node, target: Node) -> Use | None:
    matrix = type_of(operand)
    first = 1 if name == "addmm" and len(step.args) == 3 and not step.kwargs else 0
    layer = name == "linear" and place == 1
    if matrix is None or len(matrix.shape) != 2 or place != first + 1 or not (layer or first or name in _PRODUCTS):
        return None
    turned = _turned(operand, target)
    return None if turned is None else Product(step, step.args[first], target, layer != turned)  # type: ignore[arg-type]


def _turned(operand: Node, target: Node) -> bool | None:
    """Whether an operand is the transpose of a target, or the target itself; None if it is neither."""
    turns = 0
    while operand is not target:
        kind, name, dims = type_of(operand), operation(operand), operand.args[1:]
        if name not in _TRANSPOSED or kind is None or len(kind.shape) != 2 or operand.kwargs:
            return None
        if dims and [dim % 2 for dim in dims if isinstance(dim, int)] not in ([0, 1], [1, 0]):
            return None
        turns += name != "permute" or dims[0] in (1, -1)
        operand = operand.args[0]  # type: ignore[assignment]
    return bool(turns % 2)


def _is_cheap(target: Node, uses: Sequence[Use]) -> bool:
    """Whether the gradients of single samples, or their factors, are not larger than what is made of the target.

    All uses are products, or none is.
    """
    products = [use for use in uses if isinstance(use, Product)]
    if products:
        return len(products) == len(uses)
    return _size(target) <= max(64, *(_size(use.operand) for use in uses if not isinstance(use, Product)))


def _size(node: Node) -> int:
    kind = type_of(node)
    assert kind is not None
    return math.prod(kind.shape)


def operation(node: Node) -> str:
    """The plain name of what a step does."""
    return step_name(node)


def is_pure(step: Node) -> bool:
    """Whether a step neither draws random numbers nor writes into a tensor."""
    return not is_random(step) and not step.meta.get("writes")


def execute(step: Node, env: Mapping[Node, Any]) -> Any:
    """Run a step in the region in which it was written."""
    args, kwargs = torch.fx.node.map_arg((step.args, step.kwargs), lambda node: env[node])
    region = step.meta.get("context")
    with region.entered() if region is not None else nullcontext():
        if step.op == "call_method":
            return getattr(args[0], str(step.target))(*args[1:], **kwargs)
        assert callable(step.target)
        return step.target(*args, **kwargs)
