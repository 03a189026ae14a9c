"""Find influence: which sites reach which costs, what reaches nothing, and whose gradient ends at a black box."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.fx

from propc.errors import PropcWarning, message
from propc.fx.operations import step_name
from propc.fx.program import type_of
from propc.ir.graph import PropagationGraph
from propc.ir.nodes.leaves import LeafNode
from propc.ir.nodes.opaque import Opaque
from propc.ir.nodes.segment import Segment
from propc.ir.records import Ref
from propc.passes.pipeline import Pass, register
from propc.types import TensorType


@register("find-influence")
@dataclass(frozen=True)
class FindInfluence(Pass):
    """Work out influence (`graph.influence`); warn of sites that influence nothing returned, and of lost gradients."""

    name: ClassVar[str] = "find-influence"

    def apply(self, graph: PropagationGraph) -> PropagationGraph:
        _warn_of_idle_sites(graph)
        if torch.is_grad_enabled():
            _warn_of_cut_gradients(graph)
        return graph


def _warn_of_idle_sites(graph: PropagationGraph) -> None:
    reached = 0
    for ref in graph.output.inputs:
        reached |= graph.influence.values[ref].any
    for i, site in enumerate(graph.sites):
        if not reached >> i & 1:
            warnings.warn(
                message(
                    "the site reaches no cost and no returned value, so no gradient passes through it",
                    "Use its value, or leave the draw out.",
                    at=f"site {site.name!r}",
                    where=site.where,
                ),
                PropcWarning,
                stacklevel=3,
            )


def _warn_of_cut_gradients(graph: PropagationGraph) -> None:
    """Of each line with a black box at which a gradient ends that would go on from there to a cost."""
    boxes = [box for box in graph.of(Opaque) if not box.cuts]
    heard, seen = _heard(graph) if boxes else set(), set()
    for box in boxes:
        lost = _cut_leaves(graph, box)
        if lost and box.where not in seen and not heard.isdisjoint(_numbers(box)):
            seen.add(box.where)
            warnings.warn(
                message(
                    f"no gradient goes through a black box: that of {', '.join(map(repr, lost))} ends there",
                    "Write the box with operations of torch, let a site stand before it (a Normal around its argument, "
                    "under 'lr', gives the gradient of the smoothed box), or say that it is meant: "
                    "propc.opaque(fn, gradient=None).",
                    at=f"black box {box.name!r}",
                    where=box.where,
                ),
                PropcWarning,
                stacklevel=3,
            )


def _cut_leaves(graph: PropagationGraph, box: Opaque) -> list[str]:
    """The arguments and parameters that reach a box along a path of autograd which meets no site."""
    mask = graph.influence.at(box).leaves
    names = [name for i, name in enumerate(graph.influence.leaves) if mask >> i & 1]
    return [leaf.path for leaf in map(graph.nodes.__getitem__, names) if isinstance(leaf, LeafNode)]


def _numbers(box: Opaque) -> list[Ref]:
    """The results of a box that could have a gradient."""
    return [Ref(box.name, port) for port, kind in enumerate(box.outputs) if kind.dtype.is_floating_point]


def _heard(graph: PropagationGraph) -> set[Ref]:
    """The values to which a gradient would come back from costs, through sites and black boxes too.

    Influence does not say so: what is computed from a box wants no gradient, which begins behind it.
    """
    outputs = zip(graph.output.inputs, graph.output.outputs)
    found = {ref for ref, kind in outputs if _may_be_cost(kind)}
    for node in reversed([*graph]):
        ports = [port for port in range(len(node.outputs)) if Ref(node.name, port) in found]
        if ports:
            found.update(_heard_of(node, ports) if isinstance(node, Segment) else node.inputs)
    return found


def _heard_of(segment: Segment, ports: Sequence[int]) -> list[Ref]:
    """The inputs of a segment from which some of its results have a path of autograd."""
    found = {segment.results[port] for port in ports}
    for step in reversed(segment.body):
        if step in found and _differentiable(step):
            found.update(step.all_input_nodes)
    return [ref for ref, argument in zip(segment.inputs, segment.arguments) if argument in found]


def _differentiable(step: torch.fx.Node) -> bool:
    kind = type_of(step)
    number = kind is None or kind.dtype.is_floating_point or kind.dtype.is_complex
    return number and not step.meta.get("rough") and step_name(step) != "detach"


def _may_be_cost(kind: TensorType) -> bool:
    return kind.dtype.is_floating_point and len(kind.shape) < 2
