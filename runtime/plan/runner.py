"""A plan as a function; an error says at which node it came."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cached_property
from typing import Any

from propc.ir.graph import PropagationGraph
from propc.runtime.checks.out_of_memory import explained, is_shortage
from propc.runtime.observe.watched_plan import watched
from propc.runtime.observe.watcher import watching
from propc.runtime.plan.code_writer import failed, straight
from propc.runtime.plan.step import Plan

_NOTE = "(propc: while running"


class Line:
    """The steps of a plan in order, as one function; values are let go after their last reader.

    Args:
        graph: whose plan it is.
        plan: what is run.
        reads: the places of the arguments.
        writes: the places of what it gives.
    """

    def __init__(self, graph: PropagationGraph, plan: Plan, reads: Iterable[int], writes: Iterable[int]) -> None:
        self.graph, self.plan, self.reads, self.writes = graph, plan, tuple(reads), tuple(writes)

    @cached_property
    def run(self) -> Callable[..., tuple[Any, ...]]:
        """The steps as they are."""
        return straight(self.plan, self.reads, self.writes)

    @cached_property
    def watched(self) -> Callable[..., tuple[Any, ...]]:
        """The steps with somebody watching."""
        return straight(watched(self.plan), self.reads, self.writes)

    def __call__(self, *given: Any) -> tuple[Any, ...]:
        run = self.run if watching() is None else self.watched
        try:
            return run(*given)
        except Exception as error:
            index = failed(run, self.plan, error)
            if index is None:
                raise
            node = self.plan[index].node
            if is_shortage(error):
                raise explained(self.graph, node, error) from error
            if hasattr(error, "add_note") and not any(_NOTE in note for note in getattr(error, "__notes__", ())):
                error.add_note(f"{_NOTE} {node.called} {node.name!r}, {node.where})")  # not if a step inside has
            raise
