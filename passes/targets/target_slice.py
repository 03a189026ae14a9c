"""What lies between a weighting target and the sites: the values that depend on it, and their code."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import torch.fx

from propc.errors import PropcValueError, nearest
from propc.fx.dependence import Dependence
from propc.fx.program import type_of
from propc.ir.graph import PropagationGraph, leaf_named
from propc.ir.nodes.cost import Cost
from propc.ir.nodes.leaves import Input, Parameter
from propc.ir.nodes.named import Named
from propc.ir.nodes.node import Node
from propc.ir.nodes.segment import Segment
from propc.ir.nodes.site import Site
from propc.ir.records import Ref
from propc.ir.slicing import Downstream
from propc.types import TensorType


@dataclass(frozen=True)
class TargetSlice:
    """The code from a target to some values.

    Attributes:
        code: its placeholders are targets and values that do not depend on them.
        inputs: what the placeholders stand for.
        origins: for each step the segment and the step that it is a copy of.
    """

    code: torch.fx.Graph
    inputs: tuple[Ref, ...]
    origins: dict[torch.fx.Node, tuple[str, torch.fx.Node]]

    @property
    def placeholders(self) -> list[torch.fx.Node]:
        """Its arguments."""
        return [node for node in self.code.nodes if node.op == "placeholder"]

    @property
    def body(self) -> list[torch.fx.Node]:
        """Its steps."""
        return [node for node in self.code.nodes if node.op not in ("placeholder", "output")]

    @property
    def values(self) -> list[torch.fx.Node]:
        """Its arguments, and what its steps make."""
        return [node for node in self.code.nodes if node.op != "output"]

    @property
    def results(self) -> list[torch.fx.Node]:
        """What it returns."""
        return list(self.code.output_node().args[0])  # type: ignore[arg-type]


class TargetPaths:
    """The values that depend on a target without passing a site, and the code between.

    Args:
        changed: segments with outputs that were added since the pass began; more are added here.
        asks: the site that names the target.
    """

    def __init__(self, graph: PropagationGraph, path: str, changed: dict[str, Node], asks: Site) -> None:
        self.graph, self.path, self.changed = graph, path, changed
        sources = leaf_named(graph, path)
        if not sources:
            held = [n.path for n in graph.of(Parameter) if not n.constant]
            known = [n.path for n in graph.of(Input)] + held + [n.name for n in graph.of(Named)]
            raise asks.error(
                f"the weighting target {path!r} is no argument, parameter or named node",
                nearest(path, known),
                PropcValueError,
            )
        self.targets = [Ref(n.name) for n in sources]
        self.per_sample = isinstance(sources[0], Named)
        self.size = sum(math.prod(n.shape[1:] if self.per_sample else n.shape) for n in sources)
        self.between = Downstream(graph, self.targets, (Named, Cost, Segment))
        self.on = self.between.on

    def kind(self, ref: Ref) -> TensorType:
        """The type of a value, also of one that a segment exports only since this pass began."""
        return self.changed.get(ref.node, self.graph[ref.node]).outputs[ref.port]

    def resolve(self, ref: Ref) -> Ref:
        """The value behind named values and costs, up to a target."""
        while ref not in self.targets and isinstance(node := self.graph[ref.node], (Named, Cost)):
            ref = node.inputs[0]
        return ref

    def slice(self, ends: Iterable[Ref]) -> TargetSlice:
        """The code from the target to `ends`."""
        ends = [self.resolve(ref) for ref in ends]
        needed = self.between.towards(ends).steps
        code = torch.fx.Graph()
        values: dict[Ref, torch.fx.Node] = {}
        origins: dict[torch.fx.Node, tuple[str, torch.fx.Node]] = {}

        def value(ref: Ref) -> torch.fx.Node:
            if ref not in values:
                with code.inserting_before(next(iter(code.nodes), None)):
                    values[ref] = code.placeholder(f"value{len(values)}")
                values[ref].meta["type"] = self.kind(ref)
            return values[ref]

        for node in self.graph:
            if isinstance(node, Segment) and node.name in needed:
                origins.update(self._copy(node, needed[node.name], code, values, value))
        code.output(tuple(value(ref) for ref in ends))
        code.lint()
        outside = {made: ref for ref, made in values.items() if made.op == "placeholder"}
        return TargetSlice(code, tuple(outside[n] for n in code.nodes if n.op == "placeholder"), origins)

    def ref(self, found: TargetSlice, node: torch.fx.Node) -> Ref:
        """The value that a node of a slice has in the program."""
        if node in found.origins:
            return self.export(*found.origins[node])
        return found.inputs[found.placeholders.index(node)]

    def _copy(
        self,
        segment: Segment,
        steps: set[torch.fx.Node],
        code: torch.fx.Graph,
        values: dict[Ref, torch.fx.Node],
        value: Callable[[Ref], torch.fx.Node],
    ) -> dict[torch.fx.Node, tuple[str, torch.fx.Node]]:
        outside = dict(zip(segment.arguments, segment.inputs))
        copies: dict[torch.fx.Node, torch.fx.Node] = {}

        def source(node: torch.fx.Node) -> torch.fx.Node:
            if node in outside:
                return value(self.resolve(outside[node]))
            return copies[node] if node in copies else value(self.export(segment.name, node))

        for step in segment.body:
            if step in steps:
                copies[step] = code.node_copy(step, source)
        for port, result in enumerate(segment.results):
            if result in copies:
                values[Ref(segment.name, port)] = copies[result]
        return {copy: (segment.name, step) for step, copy in copies.items()}

    def export(self, name: str, step: torch.fx.Node) -> Ref:
        """Make an inner value of a segment one of its outputs."""
        segment = self.changed.get(name, self.graph[name])
        assert isinstance(segment, Segment)
        if step not in segment.results:
            kind = type_of(step)
            assert kind is not None
            segment = replace(
                segment,
                results=(*segment.results, step),
                outputs=(*segment.outputs, kind),
                dependence=(*segment.dependence, Dependence()),
            )
            self.changed[name] = segment
        return Ref(name, segment.results.index(step))
