"""Find influence: which sites reach which costs, and what reaches nothing."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import ClassVar

from propc.errors import PropcWarning, message
from propc.ir.graph import PropagationGraph
from propc.passes.pipeline import Pass, register


@register("find-influence")
@dataclass(frozen=True)
class FindInfluence(Pass):
    """Work out influence (`graph.influence`) and warn of sites that influence nothing returned."""

    name: ClassVar[str] = "find-influence"

    def apply(self, graph: PropagationGraph) -> PropagationGraph:
        reached = 0
        for ref in graph.output.inputs:
            reached |= graph.influence.values[ref].any
        for i, site in enumerate(graph.sites):
            if not reached >> i & 1:
                warnings.warn(
                    message(
                        "the site reaches no cost and no returned value, so no gradient passes through it",
                        "Use its value, or leave the draw out.",
                        at=f"site {site.name!r}",
                        where=site.where,
                    ),
                    PropcWarning,
                    stacklevel=2,
                )
        return graph
