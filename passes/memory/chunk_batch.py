"""ChunkBatch: segments take the rows of the batch a few at a time."""

from __future__ import annotations

import warnings
from collections.abc import Container, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import ClassVar

from propc.errors import GraphError, PropcTypeError, PropcWarning, message
from propc.fx.operations import counted, is_random
from propc.ir.footprint import gives, inside
from propc.ir.graph import PropagationGraph
from propc.ir.nodes.leaves import Parameter
from propc.ir.nodes.segment import Segment
from propc.ir.repeatable import beside_writes
from propc.passes.pipeline import Pass, register
from propc.propagators.sites.samples import positive

# Rows at a time. Measured for two layers of 32 to 256 units and 4096 rows, over the whole batch at once: 64 rows take
# 1.9 to 4.8 times as long, 256 rows 1.3 to 1.7, 1024 rows 1.2 to 1.3.
ROWS = 256


@register("chunk-batch")
@dataclass(frozen=True)
class ChunkBatch(Pass):
    """Let segments run on some rows of the batch at a time; the reverse pass runs each chunk of rows again.

    What lies inside a segment is then held for a chunk only. Sites, costs, baselines and weights see the whole batch
    as ever, so that numbers stay as they are. Whether rows are independent is checked at the first call. A
    segment stays whole where it draws random numbers, writes, or reads what another one writes into, computes nothing
    but what it gives, stands in plates (see ``chunk=``), has a result without the batch, or was traced with the number
    of rows as a number elsewhere than in front of a shape, as in ``x / len(x)``.

    Requires: costs with a batch.
    Ensures: `Segment.rows` of the segments that run so.

    Args:
        rows: how many at a time.
        at: patterns of names of segments; all by default.
    """

    name: ClassVar[str] = "chunk-batch"
    after: ClassVar[str] = "deduplicate-stages"
    rows: int = ROWS
    at: str | Sequence[str] = "*"

    def __post_init__(self) -> None:
        positive("rows", self.rows)
        if isinstance(self.at, str):
            object.__setattr__(self, "at", (self.at,))
        if not all(isinstance(each, str) for each in self.at):
            raise PropcTypeError(message(f"option at={self.at!r} is no name of a segment, and no sequence of names"))

    def apply(self, graph: PropagationGraph) -> PropagationGraph:
        batch = graph.batch
        if batch is None:
            raise GraphError(
                message(
                    f"{graph.name!r} has no costs of shape [batch], so that it has no rows to take a few at a time",
                    "Return one cost for each sample, or leave out propc.passes.ChunkBatch().",
                )
            )
        chosen = [s for s in graph.of(Segment) if any(fnmatchcase(s.name, pattern) for pattern in self.at)]
        written = beside_writes(graph)
        whole = {s.name: why for s in chosen if (why := _obstacle(graph, s, batch, written))}
        if len(whole) == len(chosen):
            _warn(graph, whole)
        if batch <= self.rows:
            return graph
        return graph.with_nodes(*(replace(s, rows=self.rows) for s in chosen if s.name not in whole))


def _obstacle(graph: PropagationGraph, segment: Segment, batch: int, written: Container[str]) -> str:
    """Why a segment must see the whole batch; empty if nothing is known to keep it from chunks."""
    if segment.plates:
        return "stands in plates, for which there is chunk="
    if any(is_random(step) or "generator" in step.kwargs for step in segment.body):
        return "draws random numbers, and would draw others in chunks"
    if any(step.meta.get("writes") for step in segment.body):
        return "writes into a tensor"
    if segment.name in written:
        return "reads or makes a tensor that is written into elsewhere"
    if any(kind.shape[:1] != (batch,) for kind in segment.outputs):
        return "has a result without the batch in front"
    if any(counted(step, batch) for step in segment.body):
        return f"has the number of rows, {batch}, in its code"
    read = [(graph[ref.node], graph[ref.node].outputs[ref.port].shape[:1] == (batch,)) for ref in segment.inputs]
    if any(long and isinstance(node, Parameter) for node, long in read):
        return "reads a tensor that is no argument and is as long as the batch"
    if not any(long for _, long in read):
        return "reads nothing with the batch in front"
    return "" if inside(graph, segment) > gives(graph, segment) else "computes nothing but what it gives"


def _warn(graph: PropagationGraph, whole: dict[str, str]) -> None:
    name, why = next(iter(whole.items()), ("", ""))
    found = f"; segment {name!r} ({graph[name].where}), for one, {why}" if name else ""
    warnings.warn(
        message(f"no segment of {graph.name!r} can take rows a few at a time{found}", "Look at the names in `at`."),
        PropcWarning,
        stacklevel=3,
    )
