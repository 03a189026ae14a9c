"""Hearing when each step of a plan begins and ends, in the forward and in the reverse pass.

The reverse pass is autograd's: hooks on the functions that a step has left in autograd's graph tell when they run.
Functions are numbered in the order of their making, so the numbers at which steps begin say whose each one is.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from torch.profiler import record_function

from propc.ir.adjacency import BACKWARD, FORWARD
from propc.ir.nodes.node import Node
from propc.util.torch_private import next_sequence_number, profiler_enabled, sequence_number

PREFIX = "propc::"
RUN, BLOCK, REPLAY = "run", "block", "replay"  # what holds several steps
WATCHING = "watching"  # what watching itself takes
LEAF = 2**63  # the functions that gather gradients at leaves have greater numbers


class Watcher(ABC):
    """Hears when steps begin and end. A step's reverse pass may be in several pieces, other steps' between them."""

    @abstractmethod
    def enter(self, name: str, direction: str) -> None:
        """A step begins."""

    @abstractmethod
    def leave(self, name: str, direction: str) -> None:
        """It ends."""


class Ranges(Watcher):
    """Gives steps their names in the PyTorch profiler: ``propc::stage0 (x.in)``, ``propc::stage0 (x.in) reverse``."""

    def __init__(self) -> None:
        self.open = _Open()

    def enter(self, name: str, direction: str) -> None:
        made = record_function(range_name(name, direction))
        made.__enter__()
        self.open.ranges.append(made)

    def leave(self, name: str, direction: str) -> None:
        self.open.ranges.pop().__exit__(None, None, None)


class _Open(threading.local):
    """Ranges that have begun in this thread: on a GPU autograd has threads of its own."""

    def __init__(self) -> None:
        self.ranges: list[record_function] = []


# -- who watches --------------------------------------------------------------------------


_WATCHERS: list[Watcher] = []  # the last is in force, in all threads: autograd has its own


@contextmanager
def watched_by(watcher: Watcher | None) -> Iterator[None]:
    """Let a watcher hear of all calls, or nobody."""
    if watcher is None:
        yield
        return
    _WATCHERS.append(watcher)
    try:
        yield
    finally:
        _WATCHERS.remove(watcher)


def watching() -> Watcher | None:
    """Who watches: the one who is there, or the PyTorch profiler where one is active."""
    if _WATCHERS:
        return _WATCHERS[-1]
    return Ranges() if profiling() else None


def profiling() -> bool:
    """Whether a PyTorch profiler is active in this thread."""
    return bool(profiler_enabled())


@contextmanager
def _span(watcher: Watcher, name: str, direction: str) -> Iterator[None]:
    watcher.enter(name, direction)
    try:
        yield
    finally:
        watcher.leave(name, direction)


_NOBODY = nullcontext()


def span(watcher: Watcher | None, name: str, direction: str) -> AbstractContextManager[None]:
    """While a step runs; costs next to nothing where nobody watches."""
    return _NOBODY if watcher is None else _span(watcher, name, direction)


class _Direction(threading.local):
    now = FORWARD


_DIRECTION = _Direction()


def direction() -> str:
    """In which pass steps run that are run now: what runs again for the reverse pass is a part of that."""
    return _DIRECTION.now


@contextmanager
def in_reverse() -> Iterator[None]:
    """While the reverse pass runs steps again."""
    before, _DIRECTION.now = _DIRECTION.now, BACKWARD
    try:
        yield
    finally:
        _DIRECTION.now = before


# -- the reverse pass -----------------------------------------------------------------------


def next_function() -> int:
    """The number of the next function in autograd's graph."""
    return int(next_sequence_number())


def watch_reverse(
    ends: Iterable[Any], history: Iterable[Any], starts: Sequence[int], names: Sequence[str], watcher: Watcher
) -> None:
    """Let a watcher hear of the functions in autograd's graph that steps have made.

    Args:
        ends: the functions from which a reverse pass begins.
        history: functions that were there before, where the search ends.
        starts: the number of the first function of each step.
    """
    seen, todo = set(history), list(ends)
    while todo:
        function = todo.pop()
        if function is None or function in seen:
            continue
        seen.add(function)
        number = sequence_number(function)
        if starts[0] <= number < LEAF:
            todo.extend(before for before, _ in function.next_functions)
            _watch(function, names[bisect_right(starts, number) - 1], watcher)


def _watch(function: Any, name: str, watcher: Watcher) -> None:
    function.register_prehook(lambda grads: watcher.enter(name, BACKWARD))
    function.register_hook(lambda sent, grads: watcher.leave(name, BACKWARD))


# -- names ----------------------------------------------------------------------------------


def label(*nodes: Node) -> str:
    """What the step of nodes is called in a profile: ``stage0 (x.in)``, ``site (x)``, ``stage0 + site (x.in, x)``."""
    return f"{' + '.join(map(what, nodes))} ({', '.join(node.name for node in nodes)})"


def what(node: Node) -> str:
    """The stage of a segment, the kind of another node."""
    return node.label


def label_of(group: str, nodes: Sequence[Node]) -> str:
    """What holds several steps is called, for what it does beside them: ``block (x0.in … x9)``."""
    return f"{group} ({nodes[0].name} … {nodes[-1].name})"


def group_of(name: str) -> str:
    """Whose name it is: `RUN`, `BLOCK`, `REPLAY`, or empty for a step's."""
    return next((group for group in (RUN, BLOCK, REPLAY) if name.startswith(f"{group} (")), "")


def range_name(name: str, direction: str) -> str:
    """What a step is called in the PyTorch profiler."""
    return f"{PREFIX}{name}" if direction == FORWARD else f"{PREFIX}{name} reverse"
