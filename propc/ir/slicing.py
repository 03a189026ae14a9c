"""Slicing a graph: what depends on some values, and the part of it that leads to others."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

import torch.fx

from propc.fx.dependence import dependence
from propc.fx.program import type_of
from propc.ir.graph import PropagationGraph
from propc.ir.records import Expand, Node, Output, Ref, Segment


@dataclass
class Slice:
    """Parts of a graph: steps of segments, and whole nodes, both by the node's name."""

    steps: dict[str, set[torch.fx.Node]] = field(default_factory=dict)
    nodes: set[str] = field(default_factory=set)

    def __contains__(self, name: str) -> bool:
        return name in self.steps or name in self.nodes


class Downstream:
    """What depends on some values.

    Attributes:
        on: the values, and all that depend on them.
        live: by segment, its steps that do.
        readers: the nodes that read one of them, in program order.
    """

    def __init__(self, graph: PropagationGraph, values: Iterable[Ref]) -> None:
        self.graph = graph
        self.sources = frozenset(values)
        self.on: set[Ref] = set(self.sources)
        self.live: dict[str, set[torch.fx.Node]] = {}
        self.readers: list[Node] = []
        for node in graph:
            if self.on.isdisjoint(node.inputs):
                continue
            self.readers.append(node)
            if isinstance(node, Segment):
                self._mark(node)
            elif not isinstance(node, (Output, Expand)):
                self.on.update(node.made)

    def _mark(self, segment: Segment) -> None:
        live = {a for a, ref in zip(segment.arguments, segment.inputs) if ref in self.on}
        for step in segment.body:
            if any(source in live for source in step.all_input_nodes):
                live.add(step)
        self.live[segment.name] = live
        self.on.update(ref for ref, result in zip(segment.made, segment.results) if result in live)

    def towards(self, ends: Iterable[Ref]) -> Slice:
        """The part of it that leads to these values."""
        found = Slice()
        pending = list(ends)
        while pending:
            ref = pending.pop()
            if ref in self.sources or ref not in self.on:
                continue
            node = self.graph[ref.node]
            if isinstance(node, Segment):
                pending += self._inside(node, ref.port, found.steps.setdefault(node.name, set()))
            elif node.name not in found.nodes:
                found.nodes.add(node.name)
                pending += node.inputs
        return found

    def _inside(self, segment: Segment, port: int, found: set[torch.fx.Node]) -> Iterator[Ref]:
        """Add the steps that lead to an output; what they read outside."""
        outside = dict(zip(segment.arguments, segment.inputs))
        steps = [segment.results[port]]
        while steps:
            step = steps.pop()
            if step in outside:
                yield outside[step]
            elif step in self.live[segment.name] and step not in found:
                found.add(step)
                steps.extend(step.all_input_nodes)


def with_result(segment: Segment, step: torch.fx.Node) -> Segment:
    """A segment that also gives one of its inner values."""
    kind = type_of(step)
    assert kind is not None
    results = (*segment.results, step)
    found = dependence(segment.body, segment.arguments, results)
    return replace(segment, results=results, outputs=(*segment.outputs, kind), dependence=found)
