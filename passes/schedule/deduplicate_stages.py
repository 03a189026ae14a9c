"""Deduplicate stages: equal segments share one piece of code; H equal steps are one stage."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, replace
from typing import ClassVar

from propc.fx.segment_code import build, structure
from propc.ir.graph import PropagationGraph
from propc.ir.nodes.segment import Segment, Stage
from propc.passes.pipeline import Pass, register


@register("deduplicate-stages")
@dataclass(frozen=True)
class DeduplicateStages(Pass):
    """Give every segment its stage: code that is compiled once and used by every equal segment."""

    name: ClassVar[str] = "deduplicate-stages"
    needed: ClassVar[bool] = True

    def apply(self, graph: PropagationGraph) -> PropagationGraph:
        stages: dict[Hashable, Stage] = {}
        done = []
        for segment in graph.of(Segment):
            key = structure(segment.body, segment.arguments, segment.results)
            if key not in stages:
                name = f"stage{len(stages)}"
                stages[key] = Stage(name, build(name, segment.body, segment.arguments, segment.results))
            done.append(replace(segment, stage=stages[key]))
        return graph.with_nodes(*done)
