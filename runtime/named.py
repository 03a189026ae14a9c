"""Steps with names, run one by one for somebody who watches."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from propc.ir import Node
from propc.runtime.backends.run import Run, Stage
from propc.runtime.once import recorded
from propc.runtime.straight import Call, Values
from propc.runtime.watching import (
    RUN,
    WATCHING,
    Watcher,
    direction,
    label,
    label_of,
    next_function,
    span,
    watch_reverse,
    watching,
)
from propc.wiring import BACKWARD


@dataclass(frozen=True)
class NamedStep:
    """A call to be watched.

    Attributes:
        done: the places of the values that nobody reads after it.
        nodes: of every name that is heard: the call's, and of what is inside of it; a node is in one.
    """

    name: str
    call: Call
    done: Sequence[int]
    nodes: Mapping[str, tuple[Node, ...]]


def named(node: Node, call: Call, done: Sequence[int]) -> NamedStep:
    """The step of a node, or of a backend's run of stages that begins with it."""
    if isinstance(call.function, Run):
        return _of_run(call.function, call, done)
    name = label(node)
    return NamedStep(name, call, done, {name: (node,)})


class Watched:
    """Steps run one by one, and their reverse pass, with somebody watching."""

    def __init__(self, steps: Sequence[NamedStep], watcher: Watcher) -> None:
        self.steps, self.watcher = steps, watcher
        self.current: int | None = None

    def run(self, values: Values | dict[int, Any]) -> None:
        """Run the steps on a table of values."""
        watcher, way, starts = self.watcher, direction(), []
        history = [value.grad_fn for value in _tensors(values)]
        for index, step in enumerate(self.steps):
            self.current = index
            starts.append(next_function())
            watcher.enter(step.name, way)
            try:
                step.call(values)
            finally:
                watcher.leave(step.name, way)
            for slot in step.done:
                values[slot] = None
        self.current = None
        if way == BACKWARD or not recorded():  # else the reverse pass runs all of it again
            ends = [value.grad_fn for value in _tensors(values)]
            with span(watcher, WATCHING, way):
                watch_reverse(ends, history, starts, [step.name for step in self.steps], watcher)

    def failed(self, error: BaseException) -> int | None:
        """The index of the step that raised an error; None if it was raised elsewhere."""
        return self.current


def _tensors(values: Values | dict[int, Any]) -> list[Tensor]:
    every = values.values() if isinstance(values, dict) else values
    return [value for value in every if isinstance(value, Tensor)]


# -- runs of a backend ------------------------------------------------------------------


def _of_run(run: Run, call: Call, done: Sequence[int]) -> NamedStep:
    """A run, whose stages are heard; what it does between them has a name of its own."""
    stages = [part for part in run.parts if isinstance(part, Stage)]
    inside = {label(*stage.unit.nodes): stage.unit.nodes for stage in stages}
    every = {node.name: node for part in run.parts for node in _nodes(part)}
    rest = every.keys() - {node.name for nodes in inside.values() for node in nodes}
    name = label_of(RUN, tuple(every.values()))
    parts = [_heard(part) if isinstance(part, Stage) else part for part in run.parts]
    heard = Run(parts, run.whole, run.entering, run.tokens, run.layouts)
    own = tuple(node for node in every.values() if node.name in rest)
    return NamedStep(name, replace(call, function=heard), done, {**inside, name: own})


def _nodes(part: Any) -> tuple[Node, ...]:
    """Those of a stage, or the one of a wire."""
    nodes: tuple[Node, ...] = part.unit.nodes if isinstance(part, Stage) else (part.node,)
    return nodes


def _heard(stage: Stage) -> Stage:
    name = label(*stage.unit.nodes)
    reverse = None if stage.reverse is None else _between(stage.reverse, name, lambda: BACKWARD)
    return replace(stage, forward=_between(stage.forward, name, direction), reverse=reverse)


def _between(run: Callable[[Any], Any], name: str, way: Callable[[], str]) -> Callable[[Any], Any]:
    def heard(arguments: Any) -> Any:
        with span(watching(), name, way()):
            return run(arguments)

    return heard
