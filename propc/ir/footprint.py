"""How many bytes a graph's nodes compute, and how many lie between them."""

from __future__ import annotations

import math
from collections.abc import Sequence

from propc.fx.program import type_of
from propc.ir.graph import PropagationGraph
from propc.ir.nodes.leaves import LeafNode
from propc.ir.nodes.node import Node
from propc.ir.nodes.segment import Segment
from propc.types import TensorType


def inside(graph: PropagationGraph, node: Node) -> int:
    """Bytes of all that a node computes, which autograd may keep; views of other values count nothing."""
    if isinstance(node, LeafNode):
        return 0
    if not isinstance(node, Segment) or node.rows or _in_chunks(graph, node):
        return gives(graph, node)
    found = 0
    for step in node.body:
        kind, sources = type_of(step), {source.meta.get("memory") for source in step.all_input_nodes}
        if kind is not None and step.meta.get("memory") not in sources:
            found += _bytes(kind)
    return math.prod(graph.sizes(node.plates)) * found


def gives(graph: PropagationGraph, node: Node) -> int:
    """Bytes of a node's values."""
    return math.prod(graph.sizes(node.plates)) * sum(map(_bytes, node.outputs))


def between(graph: PropagationGraph, order: Sequence[str]) -> list[int]:
    """For each place in an order of nodes, the bytes of values made before it and read from it on.

    Arguments and parameters are there anyway and count nothing.
    """
    place = {name: i for i, name in enumerate(order)}
    last: dict[tuple[str, int], int] = {}
    for i, name in enumerate(order):
        node = graph[name]
        for ref in node.reads:
            last[ref.node, ref.port] = i
    change = [0] * (len(order) + 2)
    for (name, port), end in last.items():
        node = graph[name]
        if not isinstance(node, LeafNode):
            size = math.prod(graph.sizes(node.plates)) * _bytes(node.outputs[port])
            change[place[name] + 1] += size
            change[end + 1] -= size
    found, now = [], 0
    for i in range(len(order)):
        now += change[i]
        found.append(now)
    return found


def _in_chunks(graph: PropagationGraph, node: Node) -> bool:
    plates = (graph.plate(name) for name in node.plates)
    return any(plate.chunk is not None and plate.chunk < plate.size for plate in plates)


def _bytes(kind: TensorType) -> int:
    return math.prod(kind.shape) * kind.dtype.itemsize
