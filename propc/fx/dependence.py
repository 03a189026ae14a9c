"""How a torch.fx value depends on others: at all, along a differentiable path, along one that jumps."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch.fx

from propc.fx.operations import after, is_arithmetic
from propc.fx.program import type_of


@dataclass(frozen=True, slots=True)
class Dependence:
    """How one output port of a segment depends on the segment's inputs, as bit masks.

    Bit i of `any` says that input i reaches the port; of `smooth`, through a
    differentiable path; of `rough`, through a path that autograd cannot follow
    (a comparison, rounding, an integer cast).
    """

    any: int = 0
    smooth: int = 0
    rough: int = 0


def dependence(
    body: Iterable[torch.fx.Node], arguments: tuple[torch.fx.Node, ...], results: tuple[torch.fx.Node, ...]
) -> tuple[Dependence, ...]:
    """Which inputs reach which outputs, and through what kind of path."""
    masks: dict[torch.fx.Node, Dependence] = {}
    for i, argument in enumerate(arguments):
        masks[argument] = Dependence(1 << i, 1 << i, 0)
    for node in body:
        masks[node] = step_dependence(node, masks)
    return tuple(masks[node] for node in results)


def step_dependence(node: torch.fx.Node, masks: Mapping[torch.fx.Node, Dependence]) -> Dependence:
    """Dependence of one torch.fx node, from that of its inputs.

    Autograd follows a step whose result requires a gradient and does not jump. A result of
    integers or truths, or one that jumps, is rough, and what such a one was written into; a condition that only selects
    (the first argument of where, an index) hands no roughness on; a factor or an addend does.
    """
    kind = type_of(node)
    whole = kind is not None and not (kind.dtype.is_floating_point or kind.dtype.is_complex)
    jumps = any(each.meta.get("rough") for each in (node.all_input_nodes if node.target is after else [node]))
    smooth_step = not jumps and (kind is None or kind.requires_grad)
    hides = smooth_step and not whole and not is_arithmetic(node)
    reach = smooth = rough = 0
    for source in node.all_input_nodes:
        mask, source_kind = masks.get(source), type_of(source)
        if mask is None:
            continue
        reach |= mask.any
        if smooth_step:
            smooth |= mask.smooth
        selects = source_kind is not None and not source_kind.dtype.is_floating_point
        rough |= 0 if selects and hides else mask.rough
        if whole or jumps:
            rough |= mask.any
    return Dependence(reach, smooth, rough)
