"""Steps with names, run one by one for somebody who watches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from propc.ir.adjacency import BACKWARD
from propc.ir.nodes.node import Node
from propc.runtime.autograd.run_once import recorded
from propc.runtime.backend import Several
from propc.runtime.observe.watcher import WATCHING, Watcher, direction, label, next_function, span, watch_reverse
from propc.runtime.plan.codegen import StepCall, Values


@dataclass(frozen=True)
class NamedStep:
    """A call to be watched.

    Attributes:
        done: the places of the values that nobody reads after it.
        nodes: of every name that is heard: the call's, and of what is inside of it; a node is in one.
    """

    name: str
    call: StepCall
    done: Sequence[int]
    nodes: Mapping[str, tuple[Node, ...]]


def named(node: Node, call: StepCall, done: Sequence[int]) -> NamedStep:
    """The step of a node, or what a backend has put in place of several."""
    if isinstance(call.function, Several):
        name, function, nodes = call.function.named()
        return NamedStep(name, replace(call, function=function), done, nodes)
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
