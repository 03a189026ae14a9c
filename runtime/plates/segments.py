"""Segments in plates: their code rewritten for leading dimensions, else through `torch.vmap`; at once or in chunks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.fx
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from propc.fx import segment_code
from propc.fx.operations import is_random
from propc.ir.graph import PropagationGraph
from propc.ir.named_dims import Names, aligned
from propc.ir.nodes.segment import Segment
from propc.ir.repeatable import beside_writes
from propc.runtime.batching.rule import BatchedOperation
from propc.runtime.batching.table import write
from propc.runtime.plates.vmap_errors import explained

Run = Callable[..., Sequence[Any]]


class Lifting:
    """Makes the code of a graph's segments act on values in plates. Equal segments share it."""

    def __init__(self, graph: PropagationGraph) -> None:
        self.graph = graph
        self.known: dict[Any, Run | None] = {}
        self.once = beside_writes(graph)

    def __call__(self, segment: Segment) -> Run:
        """A segment's code for values in its plates.

        Some take all elements at once, also under ``chunk=``: one that draws random numbers, which would draw others
        in chunks, and one that reads or makes what another writes into, which could not run again.
        """
        assert segment.stage is not None
        reads = [self.graph.plates_of(ref) for ref in segment.inputs]
        key = segment.stage.name, tuple(reads), segment.spread
        if key not in self.known:
            self.known[key] = rewritten(segment, reads)
        run, once = self.known[key], segment.name in self.once
        if run is not None:
            return run if once else chunked(self.graph, run, reads, segment.spread)
        vmap = vmapping(self.graph, segment, reads)
        whole = vmap(segment.stage.module.forward)
        if not once and not any(map(is_random, segment.body)):
            whole = chunked(self.graph, whole, reads, segment.spread)
        return explained(self.graph, segment, whole, vmap)


def vmapping(graph: PropagationGraph, segment: Segment, reads: Sequence[Names]) -> Callable[[Run], Run]:
    """What takes a segment's code through `torch.vmap`, a plate at a time."""

    def vmap(run: Run) -> Run:
        for name in reversed(segment.plates):  # the innermost first
            into = tuple(0 if name in plates else None for plates in reads)
            inside = [name in plates for plates in segment.spread]
            noise = "same" if graph.plate(name).common else "different"
            run = _picked(torch.vmap(run, into, 0, randomness=noise), inside)
        return run

    return vmap


def _picked(run: Run, inside: Sequence[bool]) -> Run:
    """One element of the results that are not in a plate; vmap cannot leave out a plate that is not the outermost."""
    if all(inside):
        return run
    return lambda *values: [each if whole else each[0] for each, whole in zip(run(*values), inside)]


def rewritten(segment: Segment, reads: Sequence[Names]) -> Run | None:
    """A segment's code for values in plates; None where an operation has no rule.

    Args:
        reads: the plates of each input.
    """
    assert segment.stage is not None
    if any(node.meta.get("writes") or is_random(node) for node in segment.body):
        return None
    code = _Code(segment.plates)
    arguments = [code.argument(node, plates) for node, plates in zip(segment.arguments, reads)]
    for node in segment.body:
        if not code.add(node):
            return None
    results = [code.result(node, plates) for node, plates in zip(segment.results, segment.spread)]
    body = [node for node in code.graph.nodes if node.op != "placeholder"]
    run: Run = segment_code.build(segment.stage.name, body, arguments, results).forward
    return run


class _Code:
    """The new code in the making.

    A value is in its plates from the outermost that it has to the innermost of the segment; of those between that it
    does not have, it has a dimension of length 1.
    """

    def __init__(self, order: Names) -> None:
        self.order = order
        self.graph = torch.fx.Graph()
        self.made: dict[torch.fx.Node, torch.fx.Node] = {}

    def argument(self, node: torch.fx.Node, plates: Names) -> torch.fx.Node:
        made = value = self.graph.placeholder(f"a{len(self.made)}")
        if plates and plates != self.order[-len(plates) :]:
            value = self.emit("call_function", aligned, (made, plates, self.order), {})
        self.known(node, value, plates)
        return made

    def add(self, node: torch.fx.Node) -> bool:
        """Write an operation; false where there is no rule for it."""
        args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), self.made.__getitem__)
        carried = {name for source in node.all_input_nodes for name in self.made[source].meta["plates"]}
        plates = tuple(name for name in self.order if name in carried)
        context = node.meta.get("context")

        def emit(op: str, target: Any, args: Any, kwargs: Any) -> torch.fx.Node:
            return self.emit(op, target, args, kwargs, context)

        if plates:
            found = write(BatchedOperation(emit, node, args, kwargs, plates, self.lead(plates)))
        else:
            found = emit(node.op, node.target, args, kwargs)
        if found is not None:
            self.known(node, found, plates)
        return found is not None

    def result(self, node: torch.fx.Node, plates: Names) -> torch.fx.Node:
        value = self.made[node]
        assert value.meta["plates"] == plates, f"{node} is in {value.meta['plates']}, not in {plates}"
        missing = [i for i, name in enumerate(self.order[-self.lead(plates) :]) if plates and name not in plates]
        return self.emit("call_method", "squeeze", (value, missing), {}) if missing else value

    def emit(self, op: str, target: Any, args: Any, kwargs: Any, context: Any = None) -> torch.fx.Node:
        made = self.graph.create_node(op, target, tuple(args), dict(kwargs))
        made.meta["context"] = context
        return made

    def known(self, node: torch.fx.Node, value: torch.fx.Node, plates: Names) -> None:
        self.made[node] = value
        value.meta.update(type=node.meta.get("type"), plates=plates, lead=self.lead(plates))

    def lead(self, plates: Names) -> int:
        return len(self.order) - self.order.index(plates[0]) if plates else 0


def chunked(graph: PropagationGraph, run: Run, reads: Sequence[Names], gives: Sequence[Names]) -> Run:
    """Code that takes plates larger than their chunks a chunk at a time.

    Args:
        reads, gives: the plates of each input and output.
    """
    for plate in reversed(graph.plates):  # the outermost first
        if plate.chunk is not None and plate.chunk < plate.size and any(plate.name in plates for plates in reads):
            into, out = ([_place(plate.name, plates) for plates in side] for side in (reads, gives))
            run = _in_chunks(run, plate.chunk, into, out)
    return run


def _place(name: str, plates: tuple[str, ...]) -> int | None:
    return plates.index(name) if name in plates else None


def _in_chunks(run: Run, chunk: int, into: Sequence[int | None], out: Sequence[int | None]) -> Run:
    """The same, one chunk of a plate after the other; the reverse pass computes each again."""

    def call(*values: Tensor) -> list[Any]:
        split = [[value] if dim is None else value.split(chunk, dim) for value, dim in zip(values, into)]
        count = max(map(len, split))
        each = zip(*(parts if len(parts) == count else [*parts] * count for parts in split))
        found = [checkpoint(run, *some, use_reentrant=False, preserve_rng_state=False) for some in each]
        return [parts[0] if dim is None else torch.cat(parts, dim) for parts, dim in zip(zip(*found), out)]

    return call
