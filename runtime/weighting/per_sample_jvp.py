"""Tangents of φ along directions of a weighting target, as flat code without an autograd engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.fx
from torch import Tensor

from propc.fx.program import type_of
from propc.runtime.weighting.fx_derivative import flat
from propc.runtime.weighting.layer_uses import Node, execute, is_pure


def tangent_module(
    code: torch.fx.Graph, targets: Sequence[Node], per_sample: bool, directions: int, exact: bool
) -> tuple[torch.fx.GraphModule, tuple[Node, ...]]:
    """Code for the tangents of what `code` returns, [directions, *result.shape], and the values that it reads.

    Args:
        code: from the targets and other values to φ.
        targets: placeholders in which the derivative is taken.
        per_sample: whether these have a batch dimension, so that every sample has directions of its own.
        exact: one direction for each element; else random signs, drawn at every run.
    """
    nodes = [node for node in code.nodes if node.op != "output" and type_of(node) is not None]
    steps = [node for node in code.nodes if node.op not in ("placeholder", "output")]
    ends: Any = code.output_node().args[0]

    def tangents(*values: Tensor) -> tuple[Tensor, ...]:
        known = dict(zip(nodes, values))
        points = tuple(known[target] for target in targets)

        def inner(*moved: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
            env: dict[Node, Any] = {node: known[node] for node in known if node.op == "placeholder"}
            env.update(zip(targets, moved))
            for step in steps:
                env[step] = execute(step, env)
            return tuple(env[end] for end in ends), tuple(env[node] for node in nodes if node.op != "placeholder")

        if exact and directions == 1:
            found, own = _jvp(inner, points, tuple(torch.ones_like(p) for p in points))
            found = tuple(t.unsqueeze(0) for t in found)
        else:
            basis = _basis(points, per_sample, directions, exact)
            along: Callable[..., Any] = torch.vmap(lambda *d: _jvp(inner, points, d), out_dims=(0, None))  # type: ignore[arg-type]
            found, own = along(*basis)
        own_values = iter(own)
        return (*found, *(known[node] if node.op == "placeholder" else next(own_values) for node in nodes))

    return flat(tangents, nodes, (), share=all(map(is_pure, steps)))


def _jvp(
    fn: Callable[..., Any], points: tuple[Tensor, ...], along: tuple[Tensor, ...]
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Forward-mode derivative of a function's first result; by two reverse ones where an operation has no forward rule.

    Its second result comes as it is.
    """
    try:
        _, out, own = torch.func.jvp(fn, points, along, has_aux=True)  # type: ignore[misc]
    except NotImplementedError:
        values, pull, own = torch.func.vjp(fn, *points, has_aux=True)  # type: ignore[misc]
        zeros = tuple(torch.zeros_like(v) for v in values)
        out = torch.func.vjp(pull, zeros)[1](along)[0]
    return out, own


def _basis(points: tuple[Tensor, ...], per_sample: bool, directions: int, exact: bool) -> tuple[Tensor, ...]:
    """Directions for each target, [directions, *target.shape]."""
    lead = 1 if per_sample else 0
    sizes = [p.shape[lead:].numel() for p in points]
    if exact:
        eye = torch.eye(directions, dtype=points[0].dtype, device=points[0].device)
    else:
        eye = random_signs((directions, sum(sizes)), points[0])
    found = []
    for piece, point in zip(eye.split(sizes, 1), points):
        shaped = piece.reshape(directions, *(1,) * lead, *point.shape[lead:])
        found.append(shaped.expand(directions, *point.shape))
    return tuple(found)


def random_signs(shape: tuple[int, int], like: Tensor) -> Tensor:
    """±1 with equal probability, of the dtype and on the device of a tensor: the bits of random integers."""
    count = shape[0] * shape[1]
    words = torch.randint(-(2**63), 2**63 - 1, (-(-count // 64),), device=like.device)
    bits = words.view(torch.uint8).unsqueeze(1) >> torch.arange(8, dtype=torch.uint8, device=like.device) & 1
    return bits.flatten()[:count].view(shape).to(like.dtype).mul_(2).sub_(1)
