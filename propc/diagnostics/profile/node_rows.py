"""What a profile knows of each node, and rows of nodes that are alike."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Any

from propc.diagnostics.profile.bench import Times
from propc.diagnostics.profile.memory import MemoryUse
from propc.ir.adjacency import BACKWARD, FORWARD
from propc.ir.nodes.node import Node
from propc.ir.nodes.segment import Segment
from propc.ir.nodes.site import Site
from propc.printing.text import runs
from propc.runtime.observe.watcher import BLOCK, REPLAY, RUN, group_of, range_name, what

Row = dict[str, Any]


@dataclass(frozen=True)
class Part:
    """A step of the plan: seconds and bytes of one call.

    Attributes:
        name: its name in the PyTorch profiler, behind ``propc::``; empty for what no node does.
        nodes: whose step it is.
        forward, reverse: seconds.
        allocated: bytes that the forward pass took.
        kept: of these, what is left for the reverse pass.
        reverse_allocated: bytes that the reverse pass took.
    """

    name: str
    nodes: tuple[Node, ...]
    forward: float
    reverse: float
    allocated: int
    kept: int
    reverse_allocated: int

    @property
    def seconds(self) -> float:
        """In both directions."""
        return self.forward + self.reverse


def parts(labelled: Mapping[str, tuple[Node, ...]], times: Times, memory: MemoryUse) -> list[Part]:
    """One for each step of a plan, in its order, and a last one for all that is done outside of them."""
    found = [_part(name, nodes, times, memory) for name, nodes in labelled.items()]
    rest = replace(
        _part("", (), times, memory),
        forward=max(0.0, times.forward - sum(part.forward for part in found)),
        reverse=max(0.0, times.reverse - sum(part.reverse for part in found)),
    )
    return [*found, rest]


def _part(name: str, nodes: tuple[Node, ...], times: Times, memory: MemoryUse) -> Part:
    ahead, back = range_name(name, FORWARD), range_name(name, BACKWARD)
    return Part(
        name,
        nodes,
        times.nodes.get((name, FORWARD), 0.0),
        times.nodes.get((name, BACKWARD), 0.0),
        memory.allocated.get(ahead, 0),
        memory.kept.get(ahead, 0),
        memory.allocated.get(back, 0),
    )


OVERHEAD = "call overhead"
# What is done beside the steps that are held together, or by all of them in one.
BESIDE = {RUN: "between stages", BLOCK: "around blocks", REPLAY: "replay"}


def rows(found: Sequence[Part]) -> list[Row]:
    """Parts that are alike together, the longest first; what no node does comes last."""
    groups: dict[Hashable, list[Part]] = {}
    for part in found:
        groups.setdefault(_alike(part), []).append(part)
    whole = sum(part.seconds for part in found) or 1.0
    made = [_row(group, whole) for group in groups.values()]
    return sorted(made, key=lambda row: (row["kind"] == OVERHEAD, -row["share"]))


def _alike(part: Part) -> Hashable:
    """Equal for steps of one stage, and for nodes of one kind on one line of the user's program."""
    if not part.nodes or group_of(part.name):
        return _kind(part)
    return tuple(_like(node) for node in part.nodes)


def _like(node: Node) -> Hashable:
    if isinstance(node, Segment):
        return what(node), node.plates
    return node.kind, _estimator(node), node.where, node.plates


def _row(group: Sequence[Part], whole: float) -> Row:
    first = group[0]
    columns = [[node.name for node in column if node] for column in zip_longest(*(part.nodes for part in group))]
    forward, reverse = (sum(getattr(part, way) for part in group) for way in ("forward", "reverse"))
    return {
        "name": _name(first, columns),
        "kind": _kind(first),
        "nodes": tuple(name for column in columns for name in column),
        "calls": len(group),
        "estimator": ", ".join(name for node in first.nodes if (name := _estimator(node))),
        "forward": forward,
        "reverse": reverse,
        "share": (forward + reverse) / whole,
        "allocated": sum(part.allocated for part in group),
        "kept": sum(part.kept for part in group),
        "reverse_allocated": sum(part.reverse_allocated for part in group),
        "where": "" if not first.nodes or group_of(first.name) else str(first.nodes[-1].where),
    }


def _name(first: Part, columns: Sequence[Sequence[str]]) -> str:
    """Of stages their own, of a single other node the names."""
    if not first.nodes or group_of(first.name):
        return _kind(first)
    if len(columns) == 1 and not isinstance(first.nodes[0], Segment):
        return runs(columns[0])
    return " + ".join(map(what, first.nodes))


def _kind(part: Part) -> str:
    if not part.name:
        return OVERHEAD
    group = group_of(part.name)
    return BESIDE[group] if group else " + ".join(node.called for node in part.nodes)


def _estimator(node: Node) -> str:
    if isinstance(node, Site):
        return node.estimator
    return node.propagator.name if node.propagator is not None else ""
