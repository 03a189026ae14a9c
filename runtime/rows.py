"""Segments that take the rows of the batch a few at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from propc.errors import GraphError, message
from propc.graph import PropagationGraph
from propc.ir import Segment
from propc.runtime.checkpointing import checkpointed
from propc.runtime.shortage import is_shortage

Run = Callable[..., Sequence[Tensor]]


class ByRows:
    """The code of a segment, run on a chunk of rows after the other; the reverse pass runs each again.

    Args:
        check: whether rows are to be checked at this call.
    """

    def __init__(self, graph: PropagationGraph, segment: Segment, run: Run, check: Callable[[], bool]) -> None:
        kinds = [graph[ref.node].outputs[ref.port] for ref in segment.inputs]
        self.split = [kind.shape[:1] == (graph.batch,) for kind in kinds]
        self.segment, self.run, self.check = segment, run, check

    def __call__(self, *values: Tensor) -> Sequence[Tensor]:
        if self.check():
            self._check(values)
        count = -(-self._batch(values) // self.segment.rows)
        pieces = [
            value.split(self.segment.rows) if split else [value] * count for value, split in zip(values, self.split)
        ]
        found = [checkpointed(self.run, part, draws=False) for part in zip(*pieces)]
        return [torch.cat(parts) for parts in zip(*found)]

    def _batch(self, values: Sequence[Tensor]) -> int:
        return next(len(value) for value, split in zip(values, self.split) if split)

    def _check(self, values: Sequence[Tensor]) -> None:
        """Compare some rows, run together, with the same rows run in two parts.

        Raises:
            GraphError: they differ.
        """
        count = min(2 * self.segment.rows, self._batch(values))
        half = count // 2

        def on(start: int, stop: int) -> Sequence[Tensor]:
            return self.run(*(value[start:stop] if split else value for value, split in zip(values, self.split)))

        with torch.no_grad():
            try:
                same = all(map(_same, on(0, count), map(torch.cat, zip(on(0, half), on(half, count)))))
            except RuntimeError as error:
                if is_shortage(error):
                    raise
                raise self._mixed() from error
        if not same:
            raise self._mixed()

    def _mixed(self) -> GraphError:
        return GraphError(
            message(
                "it gives something else, or nothing, where it gets the rows of the batch a few at a time",
                "Keep every operation within its row (no batch mean, no x.T, no index along dimension 0), or leave the "
                "segment out: propc.passes.ChunkBatch(at=...).",
                at=f"segment {self.segment.name!r}",
                where=self.segment.where,
            )
        )


def _same(one: Tensor, two: Tensor) -> bool:
    if one.shape != two.shape:
        return False
    if not one.dtype.is_floating_point:
        return bool(torch.equal(one, two))
    return bool(torch.allclose(one, two, rtol=1e-4, atol=1e-6, equal_nan=True))
