"""Split additive costs: a site receives only the costs downstream of it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from propc.cut import cut
from propc.graph import PropagationGraph
from propc.passes.base import Pass, register
from propc.terms import additive_terms, aside, with_terms


@register("split-costs")
@dataclass(frozen=True)
class SplitCosts(Pass):
    """Take returned sums apart into the terms that they add up.

    A returned ``r0 + r1 + r2`` becomes three costs; each sends its messages to the sites before
    it, which leaves out of a site's message everything that the site cannot influence.
    """

    name: ClassVar[str] = "split-costs"

    def apply(self, graph: PropagationGraph) -> PropagationGraph:
        terms, adders = additive_terms(graph.program)
        return replace(graph, nodes=cut(with_terms(graph.program, terms, adders), aside(graph.program)))
