"""Black boxes in plates: called on one element after the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from propc.graph import PropagationGraph
from propc.ir import Opaque

Run = Callable[..., Sequence[Any]]


def looped(graph: PropagationGraph, box: Opaque, run: Run) -> Run:
    """A black box for values in plates.

    Args:
        run: the box, for values of the program's own shapes.
    """
    reads = [graph.plates_of(ref) for ref in box.inputs]
    for name in reversed(box.plates):  # the innermost first
        run = _one_by_one(run, graph.plate(name).size, [name in plates for plates in reads])
    return run


def _one_by_one(run: Run, size: int, inside: Sequence[bool]) -> Run:
    def call(*values: Tensor) -> list[Any]:
        found = [run(*(v[i] if split else v for v, split in zip(values, inside))) for i in range(size)]
        return [torch.stack(parts) for parts in zip(*found)]

    return call
