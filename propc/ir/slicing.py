"""Slicing a graph: what depends on some values, and the part of it that leads to others."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch.fx

from propc.fx.dependence import dependence
from propc.fx.program import type_of
from propc.ir.graph import PropagationGraph
from propc.ir.nodes.node import Node
from propc.ir.nodes.segment import Segment
from propc.ir.records import Ref


@dataclass
class Slice:
    """Parts of a graph: steps of segments, and whole nodes, both by the node's name."""

    steps: dict[str, set[torch.fx.Node]] = field(default_factory=dict)
    nodes: set[str] = field(default_factory=set)

    def __contains__(self, name: str) -> bool:
        return name in self.steps or name in self.nodes


class Traced:
    """Some values, followed through a program: what depends on them, step by step of a segment.

    Args:
        nodes: of the program, by name.
        sources: the values.

    Attributes:
        on: the values, and all found to depend on them.
        live: by segment, its steps that do.
    """

    def __init__(self, nodes: Mapping[str, Node], sources: Iterable[Ref]) -> None:
        self.nodes, self.sources = nodes, frozenset(sources)
        self.on: set[Ref] = set(self.sources)
        self.live: dict[str, set[torch.fx.Node]] = {}

    def through(self, node: Node) -> Sequence[Ref]:
        """Follow them through a node that reads one; gives its outputs that depend on them."""
        fresh = self._marked(node) if isinstance(node, Segment) else node.made
        self.on.update(fresh)
        return fresh

    def _marked(self, segment: Segment) -> list[Ref]:
        live = {a for a, ref in zip(segment.arguments, segment.inputs) if ref in self.on}
        for step in segment.body:
            if any(source in live for source in step.all_input_nodes):
                live.add(step)
        self.live[segment.name] = live
        return [ref for ref, result in zip(segment.made, segment.results) if result in live]

    def towards(self, ends: Iterable[Ref]) -> Slice:
        """The part of it that leads from the sources to these values."""
        found = Slice()
        pending = list(ends)
        while pending:
            ref = pending.pop()
            if ref in self.sources or ref not in self.on:
                continue
            node = self.nodes[ref.node]
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


class Downstream(Traced):
    """All that depends on some values of a graph.

    Args:
        passed: kinds of nodes through which they are followed.

    Attributes:
        readers: the nodes that read one of them, in program order.
    """

    def __init__(
        self, graph: PropagationGraph, sources: Iterable[Ref], passed: tuple[type[Node], ...] = (Node,)
    ) -> None:
        super().__init__(graph.nodes, sources)
        self.readers: list[Node] = []
        for node in graph:
            if not self.on.isdisjoint(node.inputs):
                self.readers.append(node)
                if isinstance(node, passed):
                    self.through(node)


def with_result(segment: Segment, step: torch.fx.Node) -> Segment:
    """A segment that also gives one of its inner values."""
    kind = type_of(step)
    assert kind is not None
    results = (*segment.results, step)
    found = dependence(segment.body, segment.arguments, results)
    return replace(segment, results=results, outputs=(*segment.outputs, kind), dependence=found)
