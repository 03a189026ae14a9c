"""A run whose stages are heard by who watches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from propc.ir.adjacency import BACKWARD
from propc.ir.nodes.node import Node
from propc.runtime.backend import Named
from propc.runtime.backends.inductor.stage import CompiledStage
from propc.runtime.backends.inductor.stage_run import StageRun
from propc.runtime.observe.watcher import RUN, direction, label, label_of, span, watching


def heard(run: StageRun) -> Named:
    """The run by stages; what it does between them has a name of its own, with the nodes that only hand on."""
    inside = {label(*part.unit.nodes): part.unit.nodes for part in run.parts if isinstance(part, CompiledStage)}
    every = {node.name: node for part in run.parts for node in _nodes(part)}
    known = {node.name for nodes in inside.values() for node in nodes}
    rest = tuple(node for node in every.values() if node.name not in known)
    name = label_of(RUN, tuple(every.values()))
    parts = [_stage(part) if isinstance(part, CompiledStage) else part for part in run.parts]
    made = StageRun(parts, run.whole, run.entering, run.tokens, run.layouts)
    return name, made, {**inside, name: rest}


def _nodes(part: Any) -> tuple[Node, ...]:
    """Those of a stage, or the one of a wire."""
    nodes: tuple[Node, ...] = part.unit.nodes if isinstance(part, CompiledStage) else (part.node,)
    return nodes


def _stage(stage: CompiledStage) -> CompiledStage:
    name = label(*stage.unit.nodes)
    reverse = None if stage.reverse is None else _between(stage.reverse, name, lambda: BACKWARD)
    return replace(stage, forward=_between(stage.forward, name, direction), reverse=reverse)


def _between(run: Callable[[Any], Any], name: str, way: Callable[[], str]) -> Callable[[Any], Any]:
    def call(arguments: Any) -> Any:
        with span(watching(), name, way()):
            return run(arguments)

    return call
