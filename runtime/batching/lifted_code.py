"""The code of a segment, written for values in plates."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.fx
from torch import Tensor

from propc.fx.operations import after, getitem, is_random
from propc.fx.program import type_of
from propc.ir.named_dims import Names, aligned, closed
from propc.ir.nodes.segment import Segment
from propc.runtime.batching.rule import BatchedOperation
from propc.runtime.batching.table import write
from propc.runtime.batching.vmapped import Refuse, VmappedOperation, tensors_in


class LiftedCode:
    """The new code in the making.

    A value is in its plates from the outermost that it has to the innermost of the segment; of those between that it
    does not have, it has a dimension of length 1.

    Args:
        segment: with the old code.
        reads: the plates of each of its inputs.
        sizes: of all plates.
        common: the plates all of whose elements draw the same.
        refuse: as of `VmappedOperation`.
    """

    def __init__(
        self,
        segment: Segment,
        reads: Sequence[Names],
        sizes: Mapping[str, int],
        common: frozenset[str],
        refuse: Refuse,
    ) -> None:
        self.order, self.sizes, self.common, self.refuse = segment.plates, sizes, common, refuse
        self.graph = torch.fx.Graph()
        self.made: dict[torch.fx.Node, torch.fx.Node] = {}
        for i, (node, plates) in enumerate(zip(segment.arguments, reads)):
            self._known(node, self.graph.placeholder(f"a{i}"), plates)
        for node, plates in zip(segment.arguments, reads):
            if plates and plates != self.order[-len(plates) :]:
                self._known(
                    node, self._emit("call_function", aligned, (self.made[node], plates, self.order), {}), plates
                )
        for node in segment.body:
            self._add(node)
        self.graph.output(tuple(map(self._result, segment.results, segment.spread)))

    def _add(self, node: torch.fx.Node) -> None:
        args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), self.made.__getitem__)
        plates, context = self._plates(node), node.meta.get("context")

        def emit(op: str, target: Any, args: Any, kwargs: Any) -> torch.fx.Node:
            return self._emit(op, target, args, kwargs, context)

        found = None
        if not plates or _is_the_same_in_plates(node):
            found = emit(node.op, node.target, args, kwargs)
        elif not is_random(node) and not node.meta.get("writes"):
            found = write(BatchedOperation(emit, node, args, kwargs, plates, self._lead(plates)))
        self._known(node, self._vmapped(node, plates, emit) if found is None else found, plates)

    def _plates(self, node: torch.fx.Node) -> Names:
        """Those of what an operation gives; each element of all plates draws its own."""
        if is_random(node):
            return self.order
        sources = node.all_input_nodes[:1] if node.target is after else node.all_input_nodes
        carried = {name for source in sources for name in self.made[source].meta["plates"]}
        return tuple(name for name in self.order if name in carried)

    def _vmapped(self, node: torch.fx.Node, plates: Names, emit: Callable[..., torch.fx.Node]) -> torch.fx.Node:
        tensors = [self.made[source] for source in tensors_in(node)]
        have = [tensor.meta["plates"] for tensor in tensors]
        run = VmappedOperation(node, have, plates, self.order, self.sizes, self.common, self.refuse)
        return emit("call_function", run, tensors, {})

    def _result(self, node: torch.fx.Node, plates: Names) -> torch.fx.Node:
        """A value in the plates that are known of it: more than it has, in code that draws."""
        value, have = self.made[node], self.made[node].meta["plates"]
        if have == plates and len(have) == self._lead(have):
            return value
        sizes = [self.sizes[name] for name in plates]
        return self._emit("call_function", _fitted, (value, have, plates, self.order, sizes), {})

    def _emit(self, op: str, target: Any, args: Any, kwargs: Any, context: Any = None) -> torch.fx.Node:
        made = self.graph.create_node(op, target, tuple(args), dict(kwargs))
        made.meta["context"] = context
        return made

    def _known(self, node: torch.fx.Node, value: torch.fx.Node, plates: Names) -> None:
        self.made[node] = value
        value.meta.update(type=node.meta.get("type"), plates=plates, lead=self._lead(plates))

    def _lead(self, plates: Names) -> int:
        return len(self.order) - self.order.index(plates[0]) if plates else 0


def _is_the_same_in_plates(node: torch.fx.Node) -> bool:
    """Whether an operation knows nothing of shapes: it takes an item of a tuple, or orders a read after a write."""
    return node.target is after or (node.target is getitem and type_of(node.all_input_nodes[0]) is None)


def _fitted(value: Tensor, have: Names, want: Names, order: Names, sizes: Sequence[int]) -> Tensor:
    """A value in some plates with an element of its own in each of others."""
    value = closed(value, have, order)
    if have == want:
        return value
    own = value.shape[len(have) :]
    value = value[tuple(slice(None) if name in want else 0 for name in have)]
    return aligned(value, tuple(name for name in have if name in want), want).expand(*sizes, *own)
