"""Tracing a long scan: a few of its steps, of which one stands for all that are like it.

Tracing a step depends on nothing but the state, as far as it is known: types, and where in the graph its tensors
come from. Once a step leaves these as it found them, all later steps are like it. So the first steps are traced
until that is the case, then one that stands for many, and, as what is behind a scan may depend on its last steps
in ways of their own, those.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.fx
from torch import Tensor

from propc.errors import PropcValueError, message
from propc.frontend.environment.code_names import PRIMITIVE
from propc.frontend.scan_rounds import Round
from propc.frontend.scan_state import advanced
from propc.frontend.tracer import Tracer
from propc.frontend.user_source import user_source
from propc.fx import operations
from propc.fx.program import Mark
from propc.types import TensorType, Turn
from propc.util.torch_private import DisableTorchFunction, first_node, pytree

# Scans up to this length are traced whole: of a longer one as many steps are traced, the first, the one that stands for
# many, and `ROOM` on both sides of it.
UNROLLED = 8
# Steps to try until one is like the one before. A choice: a state that has not settled by then, such as a list that
# grows, hardly ever does, and each step tried costs its trace.
LONGEST = 32


@dataclass(frozen=True)
class CarriedValue:
    """Where a tensor of the state comes from: its torch.fx node, and, of one inside a step, its place there."""

    node: torch.fx.Node
    type: TensorType
    step: int
    place: int

    def shifted(self, later: CarriedValue) -> bool:
        """Whether the state after the next step has the same there, or the like of the next step."""
        if self.type != later.type:
            return False
        return self.node is later.node or (self.step >= 0 and (self.step + 1, self.place) == (later.step, later.place))


def trace(tracer: Tracer, step: Callable[[Any], Any], init: Any, length: int) -> Any:
    """Trace a scan; the last state."""
    whole = length <= UNROLLED
    if not whole and any(not outer.whole for outer in tracer.rounds):
        raise PropcValueError(
            message(
                f"it has {length} steps, and stands in a step of another long one",
                f"Keep one of them to {UNROLLED} steps, or write a Python loop for one of them.",
                at=f"a scan inside scan {tracer.rounds[0].scan!r}",
                where=user_source(),
            )
        )
    with DisableTorchFunction():
        name = tracer.name_of_scan()
        init = _lifted(tracer, init)
    scan = _Traced(tracer, name, step, length, whole)
    return scan.all(init) if whole else scan.some(init)


class _Traced:
    """One scan at work."""

    def __init__(self, tracer: Tracer, name: str, step: Callable[[Any], Any], length: int, whole: bool) -> None:
        self.tracer, self.name, self.step, self.length, self.whole = tracer, name, step, length, whole
        self.places: dict[torch.fx.Node, tuple[int, int]] = {}
        self.deepest = 0  # how many steps back the state reaches

    def all(self, state: Any) -> Any:
        """Every step."""
        for index in range(self.length):
            state = self.one(state, index, index)
        return state

    def some(self, state: Any) -> Any:
        """The first steps, one for those in the middle, the last ones."""
        wires = self.wires(state, 0)
        index = 0
        while True:
            state = self.turn(state, index, index, index)
            index += 1
            before, wires = wires, self.wires(state, index)
            if index == self.length:
                return self.done(state)
            if all(map(CarriedValue.shifted, before, wires)):
                break
            if index == LONGEST:
                raise self.never(state, before, wires)
        room = max(self.tracer.room, self.deepest + 1)
        middle = index - 1 + room
        last = self.length - room - 1  # of those in the middle
        while index < (middle if last > middle else self.length):
            state = self.turn(state, index, index, index)
            index += 1
        if index < self.length:
            state = self.turn(state, index, middle, last)
            for later in range(last + 1, self.length):
                index += 1
                state = self.turn(state, index, later, later)
        return self.done(state)

    def one(self, state: Any, first: int, last: int) -> Any:
        """The state after a step, which stands for steps `first` to `last`."""
        held = None if self.whole else _held(self.step)
        with _round(self.tracer, Round(self.name, first, last, self.whole)):
            state = advanced(self.step, state, first)
        if held is not None:
            self.check_pure(held)
        with DisableTorchFunction():
            return _lifted(self.tracer, state)

    def turn(self, state: Any, index: int, first: int, last: int) -> Any:
        """The same, between marks in the graph."""
        start = self.mark(Turn(self.name, index, first, last))
        state = self.one(state, first, last)
        with DisableTorchFunction():
            for leaf in _tensors(state):
                self.tracer._node(leaf)  # after the last write to its memory
        node, place = start, 0
        while node is not first_node(self.tracer.graph):
            self.places[node] = index, place
            node, place = node.next, place + 1
        return state

    def done(self, state: Any) -> Any:
        self.mark(None)
        return state

    def mark(self, turn: Turn | None) -> torch.fx.Node:
        node = self.tracer.graph.call_function(operations.marked, ())
        name = f"{self.name}.{'end' if turn is None else turn.index}"
        node.meta.update(where=user_source(), context=None, rough=False, mark=Mark("turn", name, turn=turn), type=None)
        return node

    def wires(self, state: Any, index: int) -> list[CarriedValue]:
        """Where the tensors of a state come from, before step `index`."""
        found = []
        with DisableTorchFunction():
            for leaf in _tensors(state):
                node = self.tracer._node(leaf)
                step, place = self.places.get(node, (-1, 0))
                found.append(CarriedValue(node, _type(leaf), step, place))
                if step >= 0:
                    self.deepest = max(self.deepest, index - step)
        return found

    def never(self, state: Any, before: Sequence[CarriedValue], after: Sequence[CarriedValue]) -> PropcValueError:
        """The error of steps that do not become alike."""
        with DisableTorchFunction():
            paths = [p for p, leaf in pytree.tree_flatten_with_path(state)[0] if isinstance(leaf, Tensor)]
        odd = next(i for i, (a, b) in enumerate(zip(before, after)) if not a.shifted(b))
        return PropcValueError(
            message(
                f"its steps do not become alike: after {len(before) and LONGEST} of them the state"
                f"{pytree.keystr(paths[odd])} still comes from somewhere else than a step before",
                "Let each step compute all of the state, or write a Python loop.",
                at=f"scan {self.name!r}",
                where=user_source(),
            )
        )

    def check_pure(self, held: dict[str, Any]) -> None:
        """A step that is traced a few times must not count or collect."""
        now = _held(self.step)
        changed = next((name for name in held if not _alike(held[name], now.get(name))), None)
        if changed is not None:
            raise PropcValueError(
                message(
                    f"its step changes {changed!r}, which it closes over; a long scan traces a few steps only",
                    "Carry it in the state, as a tensor, or write a Python loop.",
                    at=f"scan {self.name!r}",
                    where=user_source(),
                )
            )


@contextmanager
def _round(tracer: Tracer, new: Round) -> Iterator[None]:
    tracer.rounds.append(new)
    try:
        yield
    finally:
        tracer.rounds.pop()


def _lifted(tracer: Tracer, state: Any) -> Any:
    """A state of traced tensors."""
    return pytree.tree_map_only(Tensor, tracer._lift, state)


def _tensors(state: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(state) if isinstance(leaf, Tensor)]


def _type(value: Tensor) -> TensorType:
    return TensorType(tuple(value.shape), value.dtype, value.device, value.requires_grad)


def _held(step: Any) -> dict[str, Any]:
    """What a step could write into: the variables that it closes over, the attributes of its object.

    Of lists, dicts and sets their length; of other things themselves.
    """
    step = getattr(step, "__func__", step) if (owner := getattr(step, "__self__", None)) is not None else step
    code, cells = getattr(step, "__code__", None), getattr(step, "__closure__", None) or ()
    found = dict(getattr(owner, "__dict__", {}))
    for name, cell in zip(code.co_freevars if code is not None else (), cells):
        try:
            found[name] = cell.cell_contents
        except ValueError:  # not assigned yet
            continue
    return {
        name: (value, len(value)) if isinstance(value, (list, dict, set)) else value for name, value in found.items()
    }


def _alike(a: Any, b: Any) -> bool:
    if isinstance(a, tuple) and isinstance(b, tuple) and len(a) == len(b) == 2 and isinstance(a[1], int):
        return a[0] is b[0] and bool(a[1] == b[1])
    return a is b or (isinstance(a, PRIMITIVE) and type(a) is type(b) and bool(a == b))
