"""Rewiring: part of a program reads new values in place of old ones, the rest goes on as it was."""

from __future__ import annotations

import heapq
from collections.abc import Collection, Iterable
from dataclasses import replace

import torch.fx

from propc.errors import GraphError, message
from propc.fx.dependence import dependence
from propc.fx.operations import is_random
from propc.ir.graph import PropagationGraph
from propc.ir.nodes.cost import Cost
from propc.ir.nodes.named import Named
from propc.ir.nodes.node import Node
from propc.ir.nodes.output import Output
from propc.ir.nodes.segment import Segment
from propc.ir.nodes.site import Site
from propc.ir.records import Ref
from propc.ir.slicing import Slice, Traced, with_result

Place = tuple[int, ...]  # in program order, as tuples compare


class Rewiring:
    """A graph under change: nodes are inserted one after the other, then `graph` gives the new graph.

    Each insertion looks only at what depends on the old values, so that many are linear in the graph.
    """

    def __init__(self, graph: PropagationGraph) -> None:
        self.old = graph
        self.nodes: dict[str, Node] = dict(graph.nodes)
        self.places: dict[str, Place] = {name: (i,) for i, name in enumerate(graph.nodes)}
        self.readers: dict[Ref, dict[str, None]] = {}
        self.inserted = 0
        for node in graph:
            self._connect(node)

    def graph(self) -> PropagationGraph:
        """The graph as it is now."""
        return replace(
            self.old, nodes={name: self.nodes[name] for name in sorted(self.nodes, key=self.places.__getitem__)}
        )

    def insert(self, made: Node, ends: Collection[str] | None) -> bool:
        """Insert a node behind the last of its inputs, and let readers of these read its outputs, one for each.

        A segment that serves other readers too is sliced: what leads to the ends becomes a segment of its
        own, which reads the new values.

        Args:
            made: the node, under a name that is free.
            ends: the costs that shall see the new values; None for all costs behind it and what is returned.

        Returns:
            whether an end depends on the old values; if not, nothing is changed.

        Raises:
            GraphError: a site or black box leads to the ends and elsewhere, so that it would be needed twice,
                or is drawn before `made`; or a slice would draw random numbers or write into memory.
        """
        last = max((ref.node for ref in made.inputs), key=self.places.__getitem__)
        if ends is None and len(made.inputs) == 1:
            return self._take_over(made, self.places[last])
        change = _Rewiring(self, made, self.places[last], None if ends is None else set(ends))
        if not change.reached:
            return False
        self.inserted += 1
        self.put(made, (*self.places[last], -self.inserted))
        change.apply()
        return True

    def _take_over(self, made: Node, place: Place) -> bool:
        """Insert a node where all readers of its only input read it."""
        (old,), (new,) = made.inputs, made.made
        readers = [self.nodes[name] for name in self.readers.get(old, ())]
        for reader in readers:
            self.put(replace(reader, inputs=tuple(new if ref == old else ref for ref in reader.inputs)))
        self.inserted += 1
        self.put(made, (*place, -self.inserted))
        return bool(readers)

    def free(self, name: str) -> str:
        """The name, numbered if it is taken."""
        return next(
            n for i in range(1, len(self.nodes) + 2) if (n := name if i == 1 else f"{name}#{i}") not in self.nodes
        )

    def put(self, node: Node, place: Place | None = None) -> None:
        """Add a node, or replace the one of its name."""
        if node.name in self.nodes:
            self._disconnect(self.nodes[node.name])
        self.nodes[node.name] = node
        self.places.setdefault(node.name, place or ())
        self._connect(node)

    def trim(self, name: str) -> None:
        """Let a segment no longer compute what nobody reads."""
        segment = self.nodes[name]
        assert isinstance(segment, Segment)
        ports = [i for i, ref in enumerate(segment.made) if self.readers.get(ref)]
        if len(ports) == len(segment.outputs):
            return
        trimmed = _with_ports(segment, ports)
        moved = {Ref(name, old): Ref(name, new) for new, old in enumerate(ports)}
        readers = [reader for ref in moved for reader in self.readers[ref]]
        self.put(trimmed)
        for reader in dict.fromkeys(readers):
            node = self.nodes[reader]
            self.put(replace(node, inputs=tuple(moved.get(ref, ref) for ref in node.inputs)))
        if not trimmed.body:
            self._disconnect(trimmed)
            del self.nodes[name], self.places[name]

    def _connect(self, node: Node) -> None:
        for ref in node.inputs:
            self.readers.setdefault(ref, {})[node.name] = None

    def _disconnect(self, node: Node) -> None:
        for ref in dict.fromkeys(node.inputs):
            self.readers[ref].pop(node.name, None)


class _Rewiring:
    """One insertion: what depends on the old values, which of it leads to the ends, which elsewhere."""

    def __init__(self, wiring: Rewiring, made: Node, place: Place, ends: set[str] | None) -> None:
        self.wiring, self.made, self.place, self.ends = wiring, made, place, ends
        self.new = dict(zip(made.inputs, made.made))
        self.traced = Traced(wiring.nodes, made.inputs)
        self.reached: list[str] = []
        others = self._forward()
        self.wanted, self.kept = (self._back(names) for names in (self.reached, others))

    # -- looking ------------------------------------------------------------------------

    def _forward(self) -> list[str]:
        """Follow the old values through the program; gives the readers at which nothing is followed further."""
        places, others = self.wiring.places, []
        queue = [(places[name], name) for ref in self.traced.on for name in self.wiring.readers.get(ref, ())]
        heapq.heapify(queue)
        seen = set()
        sources = {ref.node for ref in self.traced.on}
        while queue:
            _, name = heapq.heappop(queue)
            if name in seen:
                continue
            seen.add(name)
            node = self.wiring.nodes[name]
            if self._is_end(node):
                self.reached.append(name)
                continue
            if name in sources or not self._leads_on(node):
                others.append(name)
                continue
            for ref in self.traced.through(node):
                for reader in self.wiring.readers.get(ref, ()):
                    heapq.heappush(queue, (places[reader], reader))
        return others

    def _is_end(self, node: Node) -> bool:
        if self.ends is not None:
            return node.name in self.ends
        return isinstance(node, Output) or (isinstance(node, Cost) and self.wiring.places[node.name] > self.place)

    def _leads_on(self, node: Node) -> bool:
        """Whether an end may lie behind a reader."""
        if isinstance(node, (Cost, Output)):
            return False  # the value of a cost only adds up
        if self.ends is None or not isinstance(node, Site):
            return node.name in self.wiring.old.nodes
        influence, old = self.wiring.old.influence, self.wiring.old
        return any(influence.reaches(node.name, ref) for end in self.ends for ref in old[end].inputs)

    def _back(self, names: Iterable[str]) -> Slice:
        """What leads from the old values to these nodes."""
        return self.traced.towards(ref for name in names for ref in self.wiring.nodes[name].inputs)

    # -- changing -----------------------------------------------------------------------

    def apply(self) -> None:
        """Rewrite everything that leads to the ends, in program order, then drop what nobody reads any more."""
        names = sorted({*self.wanted.steps, *self.wanted.nodes, *self.reached}, key=self.wiring.places.__getitem__)
        sliced = [name for i, name in enumerate(names) if self._rewrite(self.wiring.nodes[name], i)]
        for name in reversed(sliced):
            self.wiring.trim(name)

    def _rewrite(self, node: Node, number: int) -> bool:
        """Let one node read the new values; whether a segment was sliced for it."""
        early = self.wiring.places[node.name] <= self.place
        twice = bool(self.kept.steps.get(node.name)) or node.name in self.kept.nodes
        if isinstance(node, Segment) and (early or twice):
            place = (*self.wiring.places[self.made.name], number + 1) if early else None
            self._slice(node, place or (*self.wiring.places[node.name], -self.wiring.inserted))
            return True
        if isinstance(node, Named) and node.rule is None and (early or twice):
            self.new[Ref(node.name)] = self.new[node.inputs[0]]
            return False
        if early or twice:
            raise self._refused(node, twice)
        self.wiring.put(replace(node, inputs=tuple(self.new.get(ref, ref) for ref in node.inputs)))
        return False

    def _slice(self, segment: Segment, place: Place) -> None:
        """Make what of a segment leads to the ends a segment of its own, which reads the new values."""
        steps = self.wanted.steps[segment.name]
        body = tuple(step for step in segment.body if step in steps)
        for step in body:
            if is_random(step) or step.meta.get("writes"):
                raise self._shared(step)
        arguments = tuple(dict.fromkeys(s for n in body for s in n.all_input_nodes if s not in steps))
        results = tuple(r for r in segment.results if r in steps)
        inputs = tuple(self._value(segment, argument) for argument in arguments)
        name = self.wiring.free(f"{self.made.name}.out")
        ports = [segment.results.index(r) for r in results]
        self.new.update((Ref(segment.name, port), Ref(name, i)) for i, port in enumerate(ports))
        made = replace(
            segment,
            name=name,
            inputs=inputs,
            outputs=tuple(segment.outputs[port] for port in ports),
            body=body,
            arguments=arguments,
            results=results,
            dependence=dependence(body, arguments, results),
        )
        self.wiring.put(made, place)

    def _value(self, segment: Segment, argument: torch.fx.Node) -> Ref:
        """What a slice reads: what the segment reads, or one of its inner values."""
        outside = dict(zip(segment.arguments, segment.inputs))
        if argument in outside:
            return self.new.get(outside[argument], outside[argument])
        known = self.wiring.nodes[segment.name]
        assert isinstance(known, Segment)
        if argument not in known.results:
            known = with_result(known, argument)
            self.wiring.put(known)
        return Ref(known.name, known.results.index(argument))

    def _shared(self, step: torch.fx.Node) -> GraphError:
        return GraphError(
            message(
                "between the refitted values and the costs, code that has other readers too draws random numbers or "
                "writes into a tensor, and cannot run twice",
                "Mark the draw with propc.sample, do not work in place, or refit for all costs (costs=None).",
                at=f"{self.made.called} node {self.made.name!r}",
                where=step.meta["where"],
            )
        )

    def _refused(self, node: Node, twice: bool) -> GraphError:
        what = "leads to other costs or returned values too" if twice else "is reached before they are all there"
        return GraphError(
            message(
                f"{node.called} {node.name!r} ({node.where}) lies between the refitted values and their costs, and "
                f"{what}",
                "Refit for all costs (costs=None), or refit the values behind it.",
                at=f"{self.made.called} node {self.made.name!r}",
                where=self.made.where,
            )
        )


def _with_ports(segment: Segment, ports: Collection[int]) -> Segment:
    """A segment with these outputs only; draws and writes stay."""
    results = tuple(segment.results[i] for i in ports)
    needed = set(results)
    for step in reversed(segment.body):
        if step in needed or is_random(step) or step.meta.get("writes"):
            needed.add(step)
            needed.update(step.all_input_nodes)
    body = tuple(step for step in segment.body if step in needed)
    used = [i for i, argument in enumerate(segment.arguments) if argument in needed]
    arguments = tuple(segment.arguments[i] for i in used)
    return replace(
        segment,
        inputs=tuple(segment.inputs[i] for i in used),
        outputs=tuple(segment.outputs[i] for i in ports),
        body=body,
        arguments=arguments,
        results=results,
        dependence=dependence(body, arguments, results),
    )
