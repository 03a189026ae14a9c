"""Black boxes at run time. In plates they are called once, the plates folded into the batch, or element by element."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.fx
from torch import Tensor

from propc.errors import GraphError, message
from propc.frontend.recorder import tensor_type
from propc.ir.graph import PropagationGraph
from propc.ir.named_dims import aligned
from propc.ir.nodes.opaque import Opaque
from propc.util.rounding import agree
from propc.util.torch_private import pytree
from propc.util.torch_rng import same_random, set_state, state_of

Run = Callable[..., Sequence[Tensor]]


class OpaqueCall:
    """A black box, ready to be called on values in its plates.

    Attributes:
        folds: whether the plates are folded into the batch.
        repeats: whether it has given the same twice whenever it ran `again`.

    Raises:
        GraphError: they are to be, and an argument or a result in plates has no batch.
    """

    def __init__(self, graph: PropagationGraph, node: Opaque) -> None:
        self.graph, self.node = graph, node
        self.reads = [graph.plates_of(ref) for ref in node.inputs]
        self.shapes = [graph[ref.node].outputs[ref.port].shape for ref in node.inputs]
        self.place = {argument: i for i, argument in enumerate(node.arguments)}
        self.repeats = True
        self.folds = bool(node.plates) and graph.folds(node)
        if self.folds and not graph.can_fold(node):
            raise self._error(
                "it is marked plates='batch', and not all that it gets and gives in plates has the batch in front",
            )
        self.kinds = [(torch.Size(kind.shape[self.folds :]), kind.dtype) for kind in node.outputs]
        self.call: Run = self._folded if self.folds else self._looped()

    def run(self, *given: Tensor) -> list[Tensor]:
        """Call the user's function as the program does, on values of the program's shapes."""
        call, place = self.node.call, self.place
        args, kwargs = torch.fx.node.map_arg((call.args, call.kwargs), lambda n: given[place[n]].detach())
        with torch.no_grad():
            result = call.target(*args, **kwargs)  # type: ignore[operator]
        found = [t.detach() for t in pytree.tree_leaves(result) if isinstance(t, Tensor)]
        if [(t.shape[self.folds :], t.dtype) for t in found] != self.kinds:
            raise self._changed(found)
        return found

    def _folded(self, *given: Tensor) -> list[Tensor]:
        """[*plates, batch, ...] → [rows, ...] and back; what has the batch and no plates is repeated alike."""
        sizes = self._sizes(given)
        lead = *sizes, self.graph.batch or 0
        rows = math.prod(lead)
        found = self.run(*(self._in_rows(i, value, sizes, rows) for i, value in enumerate(given)))
        wrong = next((value for value in found if value.shape[:1] != (rows,)), None)
        if wrong is not None:
            raise self._error(f"it was called with {rows} rows, and gave a result of shape {list(wrong.shape)}")
        return [value.unflatten(0, lead) for value in found]

    def _in_rows(self, index: int, value: Tensor, sizes: Sequence[int], rows: int) -> Tensor:
        have, shape = self.reads[index], self.shapes[index]
        if not have and shape[:1] != (self.graph.batch,):
            return value
        return aligned(value, have, self.node.plates).expand(*sizes, *shape).reshape(rows, *shape[1:])

    def _sizes(self, given: Sequence[Tensor]) -> tuple[int, ...]:
        """The sizes of the plates; fewer than the graph says where they come in chunks."""
        known: dict[str, int] = {}
        for value, have in zip(given, self.reads):
            known.update(zip(have, value.shape))
        return tuple(known[name] for name in self.node.plates)

    def _looped(self) -> Run:
        """One call for each element of the plates."""
        run: Run = self.run
        for name in reversed(self.node.plates):
            plate = self.graph.plate(name)
            run = _one_by_one(run, plate.size, [name in plates for plates in self.reads], plate.common)
        return run

    # -- checking -----------------------------------------------------------------------

    def check(self, given: Sequence[Tensor], found: Sequence[Tensor]) -> None:
        """Check on an element of the plates that the box gives the same when they are folded.

        One that gives something else when it is called again, as with random numbers, is not checked.

        Raises:
            GraphError: its rows are not independent.
        """
        if not self.folds:
            return
        one = [value[(0,) * len(have)] for value, have in zip(given, self.reads)]
        with same_random():
            alone, again = self.run(*one), self.run(*one)
        if not same(alone, again):
            return
        first = [value[(0,) * len(self.node.plates)] for value in found]
        if not same(first, alone):
            count, batch = math.prod(self.graph.sizes(self.node.plates)), self.graph.batch or 0
            raise self._error(
                f"it gives other values for the same rows when it is called with all {count * batch} rows of the "
                f"plates than with {batch}"
            )

    def again(self, given: Sequence[Tensor], first: Sequence[Tensor]) -> Sequence[Tensor]:
        """Its results once more, or the first ones if once they could not be had again."""
        if self.repeats:
            with same_random():
                found = self.call(*given)
            self.repeats = same(found, self.call(*given))
        return found if self.repeats else first

    def _changed(self, found: Sequence[Tensor]) -> GraphError:
        """Something else came back than when the program was traced."""
        now = ", ".join(str(tensor_type(t)) for t in found) or "no tensor"
        return GraphError(
            message(
                f"it gives {now}, and gave {', '.join(map(str, self.node.outputs))} on zeros, when it was traced",
                "Let the shapes and dtypes of its results depend on those of its arguments alone.",
                at=f"black box {self.node.name!r}",
                where=self.node.where,
            )
        )

    def _error(self, finding: str) -> GraphError:
        plates = ", ".join(map(repr, self.node.plates))
        return GraphError(
            message(
                f"{finding} (the plate of {plates} is folded into the batch)",
                'Let row i of its results depend on row i of its arguments alone, or mark it propc.opaque(fn, plates="'
                'loop"), which calls it once for each element of the plates.',
                at=f"black box {self.node.name!r}",
                where=self.node.where,
            )
        )


def same(one: Sequence[Tensor], two: Sequence[Tensor]) -> bool:
    """Whether values agree to rounding."""
    pairs = zip(one, two, strict=True)
    return all(a.shape == b.shape and agree(_number(a), _number(b)) for a, b in pairs)


def _number(value: Tensor) -> Tensor:
    return value if value.is_floating_point() or value.is_complex() else value.double()


def _one_by_one(run: Run, size: int, inside: Sequence[bool], common: bool) -> Run:
    """A run for each element of a plate; where noise is common, from the same state of the generator."""

    def call(*given: Tensor) -> list[Tensor]:
        device = given[0].device
        state = state_of(device) if common else None
        found = []
        for i in range(size):
            if state is not None:
                set_state(device, state)
            found.append(run(*(value[i] if split else value for value, split in zip(given, inside))))
        return [torch.stack(parts) for parts in zip(*found)]

    return call
