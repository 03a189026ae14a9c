"""Tangents of φ along directions of a weighting target, as flat code without an autograd engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.fx
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from propc.tracing.program import type_of


def tangent_module(
    code: torch.fx.GraphModule, targets: Sequence[int], per_sample: bool, directions: int, exact: bool
) -> torch.fx.GraphModule:
    """Code from the arguments of `code` to the tangents of its results, [directions, *result.shape].

    Args:
        code: from the target and other values to φ.
        targets: which arguments the derivative is taken in.
        per_sample: whether these have a batch dimension, so that every sample has directions of its own.
        exact: one direction for each element; else random signs, drawn at every run.
    """
    examples = [example(node) for node in code.graph.nodes if node.op == "placeholder"]

    def tangents(*values: Tensor) -> tuple[Tensor, ...]:
        fixed = list(values)
        points = tuple(values[i] for i in targets)

        def inner(*moved: Tensor) -> tuple[Tensor, ...]:
            for i, value in zip(targets, moved):
                fixed[i] = value
            return tuple(code(*fixed))

        if exact and directions == 1:
            return tuple(t.unsqueeze(0) for t in _jvp(inner, points, tuple(torch.ones_like(p) for p in points)))
        basis = _basis(points, per_sample, directions, exact)
        along: Callable[..., Any] = torch.vmap(lambda *d: _jvp(inner, points, d))
        out: tuple[Tensor, ...] = along(*basis)
        return out

    with torch.no_grad():
        module = make_fx(tangents, tracing_mode="fake")(*examples)
    simplify(module.graph)
    module.recompile()
    return module


def simplify(graph: torch.fx.Graph) -> None:
    """Remove copies, expansions and products with one that change nothing."""
    aten = torch.ops.aten
    for node in list(graph.nodes):
        if node.target in (aten.alias.default, aten._to_copy.default, aten.expand.default, aten.detach.default):
            source = node.args[0]
        elif node.target is aten.mul.Tensor and any(_is_one(n) for n in node.args):
            source = node.args[1] if _is_one(node.args[0]) else node.args[0]
        else:
            continue
        if _same_kind(source, node):
            node.replace_all_uses_with(source)
    graph.eliminate_dead_code()


def _is_one(node: Any) -> bool:
    return isinstance(node, torch.fx.Node) and node.target is torch.ops.aten.ones_like.default


def _same_kind(a: Any, b: torch.fx.Node) -> bool:
    if not isinstance(a, torch.fx.Node):
        return False
    x, y = a.meta.get("val"), b.meta["val"]
    return isinstance(x, Tensor) and x.shape == y.shape and x.dtype == y.dtype and x.device == y.device


def _jvp(fn: Callable[..., Any], points: tuple[Tensor, ...], along: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Forward-mode derivative; by two reverse ones where an operation has no forward rule."""
    try:
        out: tuple[Tensor, ...] = torch.func.jvp(fn, points, along)[1]
    except NotImplementedError:
        values, pull, *_ = torch.func.vjp(fn, *points)
        zeros = tuple(torch.zeros_like(v) for v in values)
        out = torch.func.vjp(pull, zeros)[1](along)[0]
    return out


def _basis(points: tuple[Tensor, ...], per_sample: bool, directions: int, exact: bool) -> tuple[Tensor, ...]:
    """Directions for each target, [directions, *target.shape]."""
    lead = 1 if per_sample else 0
    sizes = [p.shape[lead:].numel() for p in points]
    if exact:
        eye = torch.eye(directions, dtype=points[0].dtype, device=points[0].device)
    else:
        eye = torch.randint(0, 2, (directions, sum(sizes)), device=points[0].device).to(points[0].dtype) * 2 - 1
    found = []
    for piece, point in zip(eye.split(sizes, 1), points):
        shaped = piece.reshape(directions, *(1,) * lead, *point.shape[lead:])
        found.append(shaped.expand(directions, *point.shape))
    return tuple(found)


def example(node: torch.fx.Node) -> Tensor:
    kind = type_of(node)
    assert kind is not None
    return torch.empty(kind.shape, dtype=kind.dtype, device=kind.device)
