"""Folding: what of a graph is drawn as one box, so that a hundred equal steps read like four."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from propc.ir.nodes.expand import Expand
from propc.ir.nodes.leaves import LeafNode
from propc.ir.nodes.node import Node
from propc.ir.nodes.output import Output
from propc.ir.nodes.scan import Scan

if TYPE_CHECKING:
    from propc.ir.graph import PropagationGraph

# Repetitions worth folding: the first and the last are drawn, two or more are folded.
FEWEST = 4
# Stages in one repetition: looking for them costs so much for each stage. Measured on 4000 unlike stages: 0.2 s at 16,
# 0.8 s at 64, 6 s at 256.
LONGEST = 64

Unit = tuple[Node, ...]


@dataclass(frozen=True)
class DrawnBox:
    """What is drawn as one: a node, the repetitions of a step, or what a box reads of leaves.

    Attributes:
        name: unique; the node's own where there is one.
        nodes: everything inside, in program order.
        repeats: how many equal steps it stands for.
        steps: for each site, cost, … of the repeated step, its repetitions.
        reader: of inputs and parameters, the box that reads them; a leaf is in the box of each reader.
    """

    name: str
    nodes: tuple[Node, ...]
    repeats: int = 1
    steps: tuple[tuple[Node, ...], ...] = ()
    reader: str = ""


def boxes(graph: PropagationGraph, *, fold: bool) -> list[DrawnBox]:
    """All boxes in program order. Constants that are one number have none: they are labels."""
    if not fold:
        return [DrawnBox(node.name, (node,)) for node in graph if node.number is None and not _is_end_of_network(node)]
    folded = _repeated(graph)
    home = {node.name: box.name for box in folded for node in box.nodes}
    first = {box.nodes[0].name: box for box in folded}
    leaves = _leaves(graph, home)
    found = []
    for node in graph:
        if isinstance(node, LeafNode) or (node.name in home and node.name not in first):
            continue
        if _is_end_of_network(node):
            continue
        box = first.get(node.name) or DrawnBox(node.name, (node,))
        if box.name in leaves:
            found.append(leaves[box.name])
        found.append(box)
    return found


def _is_end_of_network(node: Node) -> bool:
    """Whether it is the output of a network, which returns nothing."""
    return isinstance(node, Output) and not node.inputs


def _repeated(graph: PropagationGraph) -> list[DrawnBox]:
    """The inner repetitions of every run of equal steps."""
    units = list(_units(graph))
    numbers: dict[Hashable, int] = {}
    inside = {name for scan in graph.of(Scan) for name in scan.body}  # drawn as it is
    keys = [id(unit) if inside.intersection(n.name for n in unit) else _kind(unit) for unit in units]
    kinds = [numbers.setdefault(key, len(numbers)) for key in keys]
    found, start = [], 0
    while start < len(units):
        period, count = _longest_run(kinds, start)
        if count >= FEWEST:
            found.append(_box(units[start + period : start + period * (count - 1)], count - 2))
        start += period * count if count >= FEWEST else 1
    return found


def _units(graph: PropagationGraph) -> Iterator[Unit]:
    """Stages in program order: segments with the site, cost or named value that they feed."""
    unit: list[Node] = []
    for node in graph:
        if node.foldable:
            unit.append(node)
            if node.ends_repeat:
                yield tuple(unit)
                unit = []


def _kind(unit: Unit) -> Hashable:
    """Equal for stages that differ in their names and inputs only."""
    types = [tuple((t.shape, t.dtype) for t in node.outputs) for node in unit]
    return tuple((type(node), kind, node.drawn_as()) for node, kind in zip(unit, types))


def _longest_run(kinds: Sequence[int], start: int) -> tuple[int, int]:
    """Length of a step and how often it is repeated from `start` on, so that the run is longest."""
    best = (1, 1)
    for period in range(1, min(LONGEST, (len(kinds) - start) // FEWEST) + 1):
        step, count = kinds[start : start + period], 1
        while kinds[start + period * count : start + period * (count + 1)] == step:
            count += 1
        if count >= FEWEST and period * count > best[0] * best[1]:
            best = period, count
    return best


def _box(units: Sequence[Unit], repeats: int) -> DrawnBox:
    nodes = tuple(node for unit in units for node in unit)
    ends = [unit[-1] for unit in units]
    period = len(units) // repeats
    steps = tuple(tuple(ends[i::period]) for i in range(period))
    return DrawnBox(f"{ends[0].name} … {ends[-1].name}", nodes, repeats, steps)


def _leaves(graph: PropagationGraph, home: Mapping[str, str]) -> dict[str, DrawnBox]:
    """For every box what it reads of inputs and parameters: an edge from each would cross the picture."""
    read: dict[str, set[str]] = {}
    for node in graph:
        for ref in () if isinstance(node, Expand) else node.inputs:  # its label names the target
            if isinstance(graph[ref.node], LeafNode) and graph[ref.node].number is None:
                read.setdefault(home.get(node.name, node.name), set()).add(ref.node)
    leaves = [node for node in graph if isinstance(node, LeafNode)]
    found = {}
    for reader, names in read.items():
        mine = tuple(leaf for leaf in leaves if leaf.name in names)
        found[reader] = DrawnBox(f"{reader} reads", mine, reader=reader)
    return found
