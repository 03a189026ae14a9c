"""Segments that take the rows of the batch a few at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.fx
from torch import Tensor

from propc.errors import GraphError, message
from propc.fx.operations import shapes_by_argument
from propc.ir.graph import PropagationGraph
from propc.ir.nodes.segment import Segment
from propc.runtime.autograd.recompute import checkpointed
from propc.runtime.checks.out_of_memory import is_shortage
from propc.util.rounding import agree
from propc.util.torch_private import pytree

Run = Callable[..., Sequence[Tensor]]


def _resized(module: torch.fx.GraphModule, batch: int, argument: int) -> Run:
    """The code of a segment with shapes for as many rows as an argument has, in place of the whole batch."""
    graph = torch.fx.Graph()
    copies: dict[torch.fx.Node, torch.fx.Node] = {}
    result = graph.graph_copy(module.graph, copies)
    graph.output(result)
    given = [node for node in graph.nodes if node.op == "placeholder"]
    with graph.inserting_after(given[-1]):
        size = graph.call_method("size", (given[argument], 0))
    for node in graph.nodes:
        if node is not size and shapes_by_argument(node) and _front(node) == batch:
            shape = node.args[1:] if isinstance(node.args[1], int) else node.args[1]
            node.args = node.args[0], (size, *shape[1:])
    run: Run = torch.fx.GraphModule(module, graph).forward
    return run


def _front(step: torch.fx.Node) -> Any:
    """The leading size of the shape that a step gives."""
    return next(iter(pytree.tree_leaves(step.args[1:])), None)


class ByRows:
    """The code of a segment, run on a chunk of rows after the other; the reverse pass runs each again.

    Args:
        check: whether rows are to be checked at this call.
    """

    def __init__(self, graph: PropagationGraph, segment: Segment, check: Callable[[], bool]) -> None:
        assert segment.stage is not None
        assert graph.batch is not None
        kinds = [graph[ref.node].outputs[ref.port] for ref in segment.inputs]
        self.split = [kind.shape[:1] == (graph.batch,) for kind in kinds]
        self.run = _resized(segment.stage.module, graph.batch, self.split.index(True))
        self.segment, self.check = segment, check

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
    return agree(one, two)
