"""A plan whose steps are heard by who watches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from propc.ir.adjacency import BACKWARD
from propc.ir.nodes.node import Node
from propc.runtime.autograd.run_once import recorded
from propc.runtime.observe.watcher import WATCHING, direction, label, next_function, span, watch_reverse, watching
from propc.runtime.plan.step import Plan, Step


def heard(plan: Plan) -> dict[str, tuple[Node, ...]]:
    """The names that a watcher of a plan hears, with the nodes of each."""
    return {name: nodes for step in plan for name, nodes in _names(step)}


def watched(plan: Plan) -> Plan:
    """The plan with steps that tell who watches when they begin and end, and when their reverse pass does."""
    return [replace(step, function=_telling(_names(step)[0][0], step.function)) for step in plan]


def _names(step: Step) -> Sequence[tuple[str, tuple[Node, ...]]]:
    return step.heard or ((label(step.node), (step.node,)),)


def _telling(name: str, function: Callable[..., Sequence[Any]]) -> Callable[..., Sequence[Any]]:
    def run(*given: Any) -> Sequence[Any]:
        watcher, way, start = watching(), direction(), next_function()
        if watcher is None:
            return function(*given)
        history = _functions(given)
        with span(watcher, name, way):
            made = function(*given)
        if way == BACKWARD or not recorded():  # else the reverse pass runs all of it again
            with span(watcher, WATCHING, way):
                ends = [*_functions(made), *_functions(given)]  # a step may write into what it is given
                watch_reverse(ends, history, [start], [name], watcher)
        return made

    return run


def _functions(values: Iterable[Any]) -> list[Any]:
    return [value.grad_fn for value in values if isinstance(value, Tensor)]
