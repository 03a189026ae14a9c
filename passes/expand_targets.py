"""Expand targets: per-sample gradients at the parameter or node where weights are taken.

A weighting target is shared by the whole batch, and autograd gives only its summed
gradient. This pass inserts, before each site that wants it, a node that computes the
tangents of φ along directions of the target; a cotangent on φ times the tangents is
then the per-sample gradient, one row for each sample, for any number of cotangents.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
import torch.fx

from propc.errors import EstimatorError, PropcValueError, message, nearest
from propc.graph import PropagationGraph, leaf_named
from propc.ir import Cost, Dependence, Expand, Input, Named, Node, Parameter, Ref, Segment, Site, TensorType
from propc.passes.base import Pass, register
from propc.propagators import InverseVariance
from propc.runtime.tangents import tangent_module
from propc.stages import structure
from propc.tracing.program import type_of


@register("expand-targets")
@dataclass(frozen=True)
class ExpandTargets(Pass):
    """Insert an `Expand` node for every site whose weights are taken at a target.

    Args:
        exact_up_to: targets of at most this many elements (per sample, for a node) get one
            direction for each element, which is exact; larger ones get random signs, whose
            squared projections are an unbiased estimate of the summed variance (Hutchinson 1989).
        sketches: the number of random directions.
    """

    name: ClassVar[str] = "expand-targets"
    exact_up_to: int = 64
    sketches: int = 4

    def apply(self, graph: PropagationGraph) -> PropagationGraph:
        codes: dict[Hashable, torch.fx.GraphModule] = {}
        paths: dict[str, _Paths] = {}
        changed: dict[str, Node] = {}
        inserted: dict[str, Expand] = {}
        for site in graph.sites:
            target = site.rule.weighting.target if isinstance(site.rule, InverseVariance) else None
            if target is None:
                continue
            if site.plates:
                raise EstimatorError(
                    message(
                        f"a weighting target, here {target!r}, cannot be reached from inside the plate of "
                        f"{', '.join(map(repr, site.plates))}",
                        "Leave out target=, which weighs at the site, or use one sample at the sites before it.",
                        at=f"site {site.name!r}",
                        where=site.where,
                    )
                )
            if target not in paths:
                paths[target] = _Paths(graph, target, changed, site)
            expand, ports = self._expand(graph, site, paths[target], codes)
            inserted[site.name] = expand
            changed[site.name] = replace(
                site,
                tangents=tuple(
                    Ref(expand.name, ports.index(i)) if i in ports else None for i in range(len(site.inputs))
                ),
            )
        nodes: dict[str, Node] = {}
        for name, node in graph.nodes.items():
            if name in inserted:
                nodes[inserted[name].name] = inserted[name]
            nodes[name] = changed.get(name, node)
        return replace(graph, nodes=nodes)

    def _expand(
        self, graph: PropagationGraph, site: Site, paths: _Paths, codes: dict[Hashable, torch.fx.GraphModule]
    ) -> tuple[Expand, list[int]]:
        ports = [i for i, ref in enumerate(site.inputs) if ref in paths.on]
        if not ports:
            raise EstimatorError(
                message(
                    f"its weighting target {paths.path!r} does not reach it without passing another site",
                    "Choose another target for this site with a mapping, such as estimator={'x*': ..., 'z': 'tp'}.",
                    at=f"site {site.name!r}",
                    where=site.where,
                )
            )
        code, inputs = paths.slice([site.inputs[i] for i in ports])
        arguments = [n for n in code.nodes if n.op == "placeholder"]
        body = [n for n in code.nodes if n.op not in ("placeholder", "output")]
        results = list(code.output_node().args[0])  # type: ignore[arg-type]
        key = (paths.path, structure(body, arguments, results))
        exact = paths.size <= self.exact_up_to
        directions = paths.size if exact else self.sketches
        if key not in codes:
            wanted = [i for i, ref in enumerate(inputs) if ref in paths.targets]
            module = torch.fx.GraphModule({}, code, class_name="segment")
            codes[key] = tangent_module(module, wanted, paths.per_sample, directions, exact)
        outputs = tuple(
            replace(kind, shape=(directions, *kind.shape), requires_grad=False)
            for kind in (paths.kind(site.inputs[i]) for i in ports)
        )
        return Expand(
            name=f"{site.name}.expand",
            inputs=inputs,
            outputs=outputs,
            where=site.where,
            target=paths.path,
            directions=directions,
            exact=exact,
            code=codes[key],
        ), ports


class _Paths:
    """The values that depend on a target without passing a site, and the code between."""

    def __init__(self, graph: PropagationGraph, path: str, changed: dict[str, Node], asks: Site) -> None:
        self.graph, self.path, self.changed = graph, path, changed
        sources = leaf_named(graph, path)
        if not sources:
            held = [n.path for n in graph.of(Parameter) if not n.constant]
            known = [n.path for n in graph.of(Input)] + held + [n.name for n in graph.of(Named)]
            raise PropcValueError(
                message(
                    f"the weighting target {path!r} is no argument, parameter or named node",
                    nearest(path, known),
                    at=f"site {asks.name!r}",
                    where=asks.where,
                )
            )
        self.targets = [Ref(n.name) for n in sources]
        self.per_sample = isinstance(sources[0], Named)
        self.size = sum(_size(n.outputs[0], self.per_sample) for n in sources)
        self.on: set[Ref] = set(self.targets)
        self.steps: dict[str, set[torch.fx.Node]] = {}  # by segment, those that depend on the target
        for node in graph:
            if isinstance(node, (Named, Cost)) and node.inputs[0] in self.on:
                self.on.add(Ref(node.name))
            elif isinstance(node, Segment):
                self._mark(node)

    def _mark(self, segment: Segment) -> None:
        live = {a for a, ref in zip(segment.arguments, segment.inputs) if ref in self.on}
        for step in segment.body:
            if any(source in live for source in step.all_input_nodes):
                live.add(step)
        self.steps[segment.name] = live
        self.on.update(Ref(segment.name, port) for port, result in enumerate(segment.results) if result in live)

    def kind(self, ref: Ref) -> TensorType:
        """The type of a value."""
        return self.graph[ref.node].outputs[ref.port]

    def resolve(self, ref: Ref) -> Ref:
        """The value behind named values and costs, up to a target."""
        while ref not in self.targets and isinstance(node := self.graph[ref.node], (Named, Cost)):
            ref = node.inputs[0]
        return ref

    def slice(self, ends: Iterable[Ref]) -> tuple[torch.fx.Graph, tuple[Ref, ...]]:
        """The code from the target to `ends`, and the values that its placeholders stand for."""
        ends = [self.resolve(ref) for ref in ends]
        needed = self._needed(ends)
        code = torch.fx.Graph()
        values: dict[Ref, torch.fx.Node] = {}

        def value(ref: Ref) -> torch.fx.Node:
            if ref not in values:
                with code.inserting_before(next(iter(code.nodes), None)):
                    values[ref] = code.placeholder(f"value{len(values)}")
                values[ref].meta["type"] = self.kind_of_export(ref)
            return values[ref]

        for node in self.graph:
            if isinstance(node, Segment) and node.name in needed:
                self._copy(node, needed[node.name], code, values, value)
        code.output(tuple(value(ref) for ref in ends))
        code.lint()
        outside = {made: ref for ref, made in values.items() if made.op == "placeholder"}
        return code, tuple(outside[n] for n in code.nodes if n.op == "placeholder")

    def kind_of_export(self, ref: Ref) -> TensorType:
        """The type of a value, also of one that a segment exports only since this pass began."""
        node = self.changed.get(ref.node, self.graph[ref.node])
        return node.outputs[ref.port]

    def _needed(self, ends: Iterable[Ref]) -> dict[str, set[torch.fx.Node]]:
        """The steps on the way from the target, by segment."""
        needed: dict[str, set[torch.fx.Node]] = {}
        pending = list(ends)
        while pending:
            ref = self.resolve(pending.pop())
            segment = self.graph[ref.node]
            if ref in self.targets or ref not in self.on or not isinstance(segment, Segment):
                continue
            outside = dict(zip(segment.arguments, segment.inputs))
            found = needed.setdefault(segment.name, set())
            steps = [segment.results[ref.port]]
            while steps:
                step = steps.pop()
                if step in outside:
                    pending.append(outside[step])
                elif step in self.steps[segment.name] and step not in found:
                    found.add(step)
                    steps.extend(step.all_input_nodes)
        return needed

    def _copy(
        self,
        segment: Segment,
        steps: set[torch.fx.Node],
        code: torch.fx.Graph,
        values: dict[Ref, torch.fx.Node],
        value: Callable[[Ref], torch.fx.Node],
    ) -> None:
        outside = dict(zip(segment.arguments, segment.inputs))
        copies: dict[torch.fx.Node, torch.fx.Node] = {}

        def source(node: torch.fx.Node) -> torch.fx.Node:
            if node in outside:
                return value(self.resolve(outside[node]))
            return copies[node] if node in copies else value(self._export(segment.name, node))

        for step in segment.body:
            if step in steps:
                copies[step] = code.node_copy(step, source)
        for port, result in enumerate(segment.results):
            if result in copies:
                values[Ref(segment.name, port)] = copies[result]

    def _export(self, name: str, step: torch.fx.Node) -> Ref:
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


def _size(kind: TensorType, per_sample: bool) -> int:
    size = 1
    for length in kind.shape[1:] if per_sample else kind.shape:
        size *= length
    return size
