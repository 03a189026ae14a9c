"""Explore alternatives: what costs would be on values that a site did not take."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import ClassVar

import torch.fx

from propc.errors import EstimatorError
from propc.fx.dependence import dependence
from propc.fx.operations import is_random
from propc.ir.graph import PropagationGraph
from propc.ir.nodes.compare_alternatives import CompareAlternatives
from propc.ir.nodes.cost import Cost
from propc.ir.nodes.node import Node
from propc.ir.nodes.reduce import Reduce
from propc.ir.nodes.segment import Segment
from propc.ir.nodes.site import Site
from propc.ir.records import LOG_MEAN_EXP, Ref, Route, Token
from propc.ir.slicing import Downstream, with_result
from propc.passes.pipeline import Pass, register
from propc.passes.plates.cost_levels import level_of, levels_of
from propc.types import Plate


@register("explore-alternatives")
@dataclass(frozen=True)
class ExploreAlternatives(Pass):
    """Give sites whose rule explores a plate of alternatives, and copy what of the program leads from there to costs.

    Copies run without gradient and are named after their original and the site, such as ``decoder.in@z``. What
    does not depend on the site they read of the originals: of a segment only the steps that do are copied. A
    `CompareAlternatives` node puts each cost beside its copy and sends the site the difference.

    Args:
        chunk: how many alternatives segments hold at once, where an estimator says nothing; None is all.
    """

    name: ClassVar[str] = "explore-alternatives"
    needed: ClassVar[bool] = True
    chunk: int | None = None

    def apply(self, graph: PropagationGraph) -> PropagationGraph:
        found = []
        for site in graph.sites:
            plate = site.rule.alternatives(site, graph.batched(site)) if site.rule is not None else None
            if plate is not None:
                found.append((site, plate if plate.chunk is not None else replace(plate, chunk=self.chunk)))
        if not found:
            return graph
        growing = _Growing(graph, [plate for _, plate in found])
        for site, plate in found:
            _Copying(growing, site, plate).run()
        return growing.graph()


class _Growing:
    """A graph to which copies are added.

    Attributes:
        old: the graph as it was; copies are made of its nodes.
        changed: its nodes that have other outputs now.
        behind: new nodes, by the old one that they follow.
        ends: for each cost that is compared, the last node that does it; who reads the cost reads this.
    """

    def __init__(self, graph: PropagationGraph, plates: Iterable[Plate]) -> None:
        self.old = graph
        self.plates = (*graph.plates, *plates)
        self.order = {plate.name: i for i, plate in enumerate(self.plates)}
        self.reduces = {node.inputs[0]: node for node in graph.of(Reduce) if node.of_cost}
        self.changed: dict[str, Node] = {}
        self.behind: dict[str, list[Node]] = {}
        self.ends: dict[Ref, Ref] = {}
        self.routes: list[Route] = []
        self.carried = {ref: graph.plates_of(ref) for node in graph for ref in node.made}
        self.taken = set(graph.nodes)

    def graph(self) -> PropagationGraph:
        """The graph with everything that was added."""
        nodes: dict[str, Node] = {}
        for name, node in self.old.nodes.items():
            node = self.changed.get(name, node)
            if not self.ends.keys().isdisjoint(node.inputs):
                node = replace(node, inputs=tuple(self.ends.get(ref, ref) for ref in node.inputs))
            nodes[name] = node
            nodes.update((added.name, added) for added in self.behind.get(name, ()))
        return replace(self.old, nodes=nodes, plates=self.plates, routes=(*self.old.routes, *self.routes))

    def add(self, node: Node, behind: str) -> None:
        """Add a node behind an old one and those that were added there before."""
        self.taken.add(node.name)
        self.behind.setdefault(behind, []).append(node)
        for port, ref in enumerate(node.made):
            self.carried[ref] = node.plates_of(port, self.carried.__getitem__)

    def free(self, name: str) -> str:
        """The name, numbered if it is taken."""
        numbered = (name if i == 1 else f"{name}#{i}" for i in range(1, len(self.taken) + 2))
        return next(name for name in numbered if name not in self.taken)

    def union(self, refs: Iterable[Ref], *own: str) -> tuple[str, ...]:
        """The plates of values together, the outermost first."""
        plates = {plate for ref in refs for plate in self.carried[ref]}.union(own)
        return tuple(sorted(plates, key=self.order.__getitem__, reverse=True))

    def inner(self, segment: Segment, step: torch.fx.Node) -> Ref:
        """An inner value of an old segment, which gives it from now on."""
        known = self.changed.get(segment.name, segment)
        assert isinstance(known, Segment)
        if step not in known.results:
            known = with_result(known, step)
            if known.plates:
                known = replace(known, spread=(*known.spread, self._spread(known)))
            self.changed[segment.name] = known
            self.carried[known.made[-1]] = known.spread[-1] if known.spread else ()
        return Ref(segment.name, known.results.index(step))

    def _spread(self, segment: Segment) -> tuple[str, ...]:
        """The plates of the last output."""
        if any(map(is_random, segment.body)):
            return segment.plates
        return self.union(segment.depends(len(segment.outputs) - 1))


class _Copying:
    """The copies for one site."""

    def __init__(self, growing: _Growing, site: Site, plate: Plate) -> None:
        self.growing, self.site, self.plate = growing, site, plate
        self.new: dict[Ref, Ref] = {}  # what stands for an old value on the alternatives

    def run(self) -> None:
        growing, site, old = self.growing, self.site, self.growing.old
        port = Ref(site.name, len(site.outputs))
        growing.changed[site.name] = replace(
            site, outputs=(*site.outputs, site.outputs[0]), alternatives=self.plate.name
        )
        growing.carried[port] = (self.plate.name, *site.plates)
        self.new[Ref(site.name)] = port
        after = Downstream(old, [Ref(site.name)])
        costs = [node for node in after.readers if isinstance(node, Cost)]
        levels = [level_of(levels_of(cost, growing.reduces), site) for cost in costs]
        wanted = after.towards(Ref(level) for level in levels)
        for node in after.readers:
            if isinstance(node, Segment) and node.name in wanted.steps:
                self._segment(node, wanted.steps[node.name])
            elif node.name in wanted.nodes or node.mixes_rows:
                self._check(node)
                self._node(node)
        for level in levels:
            self._compare(level)

    def _value(self, ref: Ref) -> Ref:
        return self.new.get(ref, ref)

    def _name(self, node: Node, what: str = "") -> str:
        return self.growing.free(f"{node.name}{what}@{self.site.name}")

    # -- copying ------------------------------------------------------------------------

    def _segment(self, segment: Segment, steps: set[torch.fx.Node]) -> None:
        """Copy the steps of a segment that lead from the alternatives to costs."""
        body = tuple(step for step in segment.body if step in steps)
        arguments = tuple(dict.fromkeys(s for step in body for s in step.all_input_nodes if s not in steps))
        self._check_memory(segment, body, arguments)
        outside = dict(zip(segment.arguments, segment.inputs))
        inputs = tuple(self._value(outside[a]) if a in outside else self.growing.inner(segment, a) for a in arguments)
        ports = [port for port, result in enumerate(segment.results) if result in steps]
        results = tuple(segment.results[port] for port in ports)
        made = replace(
            segment,
            name=self._name(segment),
            inputs=inputs,
            outputs=tuple(segment.outputs[port] for port in ports),
            body=body,
            arguments=arguments,
            results=results,
            dependence=dependence(body, arguments, results),
            copy_of=segment.name,
        )
        self._added(segment, made.carrying(self.growing.union), ports)

    def _node(self, node: Node) -> None:
        """Copy a node; one that only hands a value on has no copy."""
        inputs = tuple(map(self._value, node.inputs))
        alike = isinstance(node, Reduce) and set(node.over).isdisjoint(self.growing.carried[inputs[0]])
        if alike or node.hands_on:
            self.new[Ref(node.name)] = inputs[0]
            return
        made = replace(node, name=self._name(node), inputs=inputs, copy_of=node.name)
        self._added(node, made.copied(self.site.name).carrying(self.growing.union))

    def _added(self, node: Node, made: Node, ports: Iterable[int] | None = None) -> None:
        self.growing.add(made, node.name)
        old = node.made if ports is None else (Ref(node.name, port) for port in ports)
        self.new.update(zip(old, made.made))

    def _compare(self, level: str) -> None:
        """Put a cost beside what it is on the alternatives."""
        growing, cost = self.growing, self.growing.old[level]
        old = Ref(level)
        made = CompareAlternatives(
            name=self._name(cost, ".compare"),
            inputs=(growing.ends.get(old, old), self.new[old]),
            outputs=cost.outputs,
            where=cost.where,
            plates=cost.plates,
            dims=cost.dims,
            over=self.plate.name,
        )
        growing.add(made, level)
        growing.ends[old] = Ref(made.name)
        token = (Token(self.site.name),)
        growing.routes.append(
            Route(made.name, token, fields=("alternatives",), kind="alternatives", through=token, over=())
        )

    # -- refusing -----------------------------------------------------------------------

    def _check(self, node: Node) -> None:
        """Refuse what cannot be run again, or has messages of its own."""
        old = self.growing.old
        if node.mixes_rows:
            raise self._refused(node, node.mixes_rows)
        if node.takes_messages or (isinstance(node, Site) and node.rule is not None and node.rule.anew() is None):
            assert node.propagator is not None
            raise self._refused(node, f"has the propagator {node.propagator.name!r}, which handles messages itself")
        if isinstance(node, Cost) and node.how == LOG_MEAN_EXP and self.site.plates:
            raise self._refused(node, "is a bound, one number for all samples of the plates of the site")
        if isinstance(node, Cost) and not node.shape and old.batched(self.site):
            raise self._refused(node, f"is one number for all {old.batch} rows of the site")

    def _check_memory(
        self, segment: Segment, body: Iterable[torch.fx.Node], arguments: Iterable[torch.fx.Node]
    ) -> None:
        """Refuse code that writes into a tensor, or reads one that is written into: copies run after it."""
        read = {a.meta.get("memory") for a in arguments} - {None}
        inside = set(body)
        for step in segment.body:
            written = {source.meta.get("memory") for source in step.all_input_nodes}
            if step.meta.get("writes") and (step in inside or not read.isdisjoint(written)):
                raise self.site.error(
                    f"estimator {self.site.estimator!r} runs the program behind the site again, and there it "
                    f"writes into a tensor ({step.meta['where']})",
                    "Write x = x + y in place of x += y, and torch.stack in place of assignments to elements.",
                )

    def _refused(self, node: Node, what: str) -> EstimatorError:
        return self.site.error(
            f"estimator {self.site.estimator!r} compares the costs of alternatives, and {node.called} "
            f"{node.name!r} ({node.where}) behind the site {what}",
            "Use 'lr' at the site, or leave that out.",
        )
