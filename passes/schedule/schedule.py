"""Schedule: the order in which the runtime executes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from propc.ir.graph import PropagationGraph
from propc.ir.nodes.resample import Resample
from propc.ir.nodes.site import Site
from propc.ir.records import Order as Order
from propc.passes.pipeline import Pass, register
from propc.propagators import Plain


@register("schedule")
@dataclass(frozen=True)
class Schedule(Pass):
    """Run forward in program order, so that random numbers are drawn as the user wrote them.

    The reverse pass meets the sites and resample nodes in the opposite order, in one call of the autograd engine:
    every route is an autograd edge. Where propagators send more than cotangents, it visits them and the sites one
    by one instead.
    """

    name: ClassVar[str] = "schedule"
    needed: ClassVar[bool] = True

    def apply(self, graph: PropagationGraph) -> PropagationGraph:
        sites = {n.name for n in graph.of(Site) if not isinstance(n.rule, Plain) and not n.copy_of}
        sites.update(n.name for n in graph.of(Resample))
        general = graph.program is None or graph.general
        met = sites.union(graph.wiring.vertices) if general else sites
        reverse = tuple(name for name in reversed(tuple(graph.nodes)) if name in met)
        return replace(graph, schedule=Order(tuple(graph.nodes), reverse, 0 if general else 1))
