"""Code in plates: segments through `torch.vmap`, all at once or in chunks; black boxes element by element."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from propc.graph import PropagationGraph
from propc.ir import Opaque, Segment
from propc.tracing.operations import is_random

Run = Callable[..., Sequence[Any]]


def lifted(graph: PropagationGraph, segment: Segment, run: Run) -> Run:
    """A segment's code for values in plates.

    Args:
        run: the code, for values of the program's own shapes.
    """
    reads = [graph.plates_of(ref) for ref in segment.inputs]
    for name in reversed(segment.plates):  # the innermost first
        dims: list[Any] = [tuple(0 if name in p else None for p in side) for side in (reads, segment.spread)]
        run = torch.vmap(run, dims[0], dims[1], randomness="same" if graph.plate(name).common else "different")
    for name in segment.plates:
        plate = graph.plate(name)
        if plate.chunk is not None and plate.chunk < plate.size:
            into, out = ([_place(name, plates) for plates in side] for side in (reads, segment.spread))
            run = _in_chunks(run, plate.chunk, into, out, random=any(map(is_random, segment.body)))
    return run


def looped(graph: PropagationGraph, box: Opaque, run: Run) -> Run:
    """A black box, called on one element of its plates after the other."""
    reads = [graph.plates_of(ref) for ref in box.inputs]
    for name in reversed(box.plates):
        run = _one_by_one(run, graph.plate(name).size, [name in plates for plates in reads])
    return run


def _one_by_one(run: Run, size: int, inside: Sequence[bool]) -> Run:
    def call(*values: Tensor) -> list[Any]:
        found = [run(*(v[i] if split else v for v, split in zip(values, inside))) for i in range(size)]
        return [torch.stack(parts) for parts in zip(*found)]

    return call


def _place(name: str, plates: tuple[str, ...]) -> int | None:
    return plates.index(name) if name in plates else None


def _in_chunks(run: Run, chunk: int, into: Sequence[int | None], out: Sequence[int | None], random: bool) -> Run:
    """The same, one chunk of a plate after the other; the reverse pass computes each again."""

    def call(*values: Tensor) -> list[Any]:
        split = [[value] if dim is None else value.split(chunk, dim) for value, dim in zip(values, into)]
        count = max(map(len, split))
        each = zip(*(parts if len(parts) == count else [*parts] * count for parts in split))
        found = [checkpoint(run, *some, use_reentrant=False, preserve_rng_state=random) for some in each]
        return [parts[0] if dim is None else torch.cat(parts, dim) for parts, dim in zip(zip(*found), out)]

    return call
