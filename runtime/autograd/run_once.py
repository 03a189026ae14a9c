"""What a stretch of a program does once, though the stretch runs again: calls of black boxes, steps of averages."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor

from propc.util.torch_private import pytree
from propc.util.torch_rng import from_state, set_state, state_of

T = TypeVar("T")
_LOCAL = threading.local()


def once(call: Callable[[], T], draws: bool = True) -> T:
    """What a call gives; where the program runs again, what the call gave at first.

    Tensors in the result have no history.

    Args:
        draws: whether the call may draw random numbers; draws behind it see those that they saw at first.
    """
    return _through(_recordings(), call, draws)


def once_of(call: Callable[..., T]) -> Callable[..., T]:
    """The same function, which where the program runs again is not called again."""
    return lambda *given: once(partial(call, *given))


def recorded() -> bool:
    """Whether this is a stretch that runs again."""
    return bool(_recordings())


def differentiated_twice() -> bool:
    """Whether a reverse pass through what has run again is under way, which is itself to be differentiated.

    Then the gates inside meet the second reverse pass twice, each time with a part of what arrives.
    """
    return getattr(_LOCAL, "twice", False)


@contextmanager
def differentiating(twice: bool) -> Iterator[None]:
    """A reverse pass through what has run again."""
    before, _LOCAL.twice = differentiated_twice(), twice
    try:
        yield
    finally:
        _LOCAL.twice = before


class EffectLog:
    """The random states in front of a stretch of a program, and what the stretch has done once.

    Args:
        devices: of the generators that it may draw from.

    Attributes:
        tensors: in the results of what was done once.
    """

    def __init__(self, devices: Sequence[torch.device]) -> None:
        self.states = {device: state_of(device) for device in devices}
        self.tensors: list[Tensor] = []
        self._done: list[Callable[[Sequence[Tensor]], Any]] = []  # each gives a result again, from all tensors
        self._again: Iterator[Any] | None = None

    @contextmanager
    def running(self) -> Iterator[None]:
        """The stretch runs."""
        stack = _recordings()
        stack.append(self)
        try:
            yield
        finally:
            stack.pop()

    @contextmanager
    def repeating(self, tensors: Sequence[Tensor]) -> Iterator[None]:
        """The stretch runs again, from the same random numbers; then all generators are as they were.

        Args:
            tensors: those of the recording.
        """
        self._again = (result(tensors) for result in self._done)
        with ExitStack() as states:
            for device, state in self.states.items():
                states.enter_context(from_state(device, state))
            try:
                with self.running():
                    yield
            finally:
                self._again = None

    def do(self, call: Callable[[], Any], draws: bool) -> Any:
        """What a call inside the stretch gives, or gave."""
        if self._again is not None:
            return next(self._again)
        before = self._now() if draws else {}
        found = call()
        self._record(found, {d: now for d, state in before.items() if not torch.equal(now := state_of(d), state)})
        return found

    def _record(self, found: Any, moved: dict[torch.device, Tensor]) -> None:
        leaves, tree = pytree.tree_flatten(found)
        start = len(self.tensors)
        self.tensors += [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        rest = [None if isinstance(leaf, Tensor) else (leaf,) for leaf in leaves]

        def again(tensors: Sequence[Tensor]) -> Any:
            for device, state in moved.items():
                set_state(device, state)
            places = iter(tensors[start:])
            return pytree.tree_unflatten([next(places) if kept is None else kept[0] for kept in rest], tree)

        self._done.append(again)

    def _now(self) -> dict[torch.device, Tensor]:
        return {device: state_of(device) for device in self.states}


def _through(recordings: Sequence[EffectLog], call: Callable[[], T], draws: bool) -> T:
    """A call inside recordings, the innermost last."""
    if not recordings:
        return call()
    *outer, inner = recordings
    found: T = inner.do(lambda: _through(outer, call, draws), draws)
    return found


def _recordings() -> list[EffectLog]:
    """Those in force in this thread, the innermost last."""
    stack: list[EffectLog] = vars(_LOCAL).setdefault("stack", [])
    return stack
