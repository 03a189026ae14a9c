"""Segments in plates: their code, written for leading dimensions; at once or in chunks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from propc.fx.operations import is_random
from propc.ir.graph import PropagationGraph
from propc.ir.named_dims import Names
from propc.ir.nodes.segment import Segment
from propc.ir.repeatable import beside_writes
from propc.runtime.batching.lifted_code import LiftedCode
from propc.runtime.batching.recorded import Recorded
from propc.runtime.plates.vmap_errors import refuse

Run = Callable[..., Sequence[Any]]


class Lifting:
    """Makes the code of a graph's segments act on values in plates. Equal segments share it."""

    def __init__(self, graph: PropagationGraph) -> None:
        self.graph = graph
        self.known: dict[Any, Run] = {}
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
            self.known[key] = lifted(self.graph, segment, reads).run
        run = self.known[key]
        if segment.name in self.once or any(map(is_random, segment.body)):
            return run
        return chunked(self.graph, run, reads, segment.spread)


def lifted(graph: PropagationGraph, segment: Segment, reads: Sequence[Names]) -> Recorded:
    """A segment's code for values in plates.

    Args:
        reads: the plates of each input.
    """
    assert segment.stage is not None
    sizes = {plate.name: plate.size for plate in graph.plates}
    common = frozenset(plate.name for plate in graph.plates if plate.common)
    code = LiftedCode(segment, reads, sizes, common, partial(refuse, graph, segment))
    return Recorded(segment.stage.name, code.graph)


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
