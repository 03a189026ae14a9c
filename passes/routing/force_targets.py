"""Force targets: send the messages of a node elsewhere, whatever its propagator says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from propc.errors import GraphError, message, nearest
from propc.ir.graph import PropagationGraph
from propc.ir.nodes.cost import Cost
from propc.ir.nodes.named import Named
from propc.passes.pipeline import Pass, register
from propc.util.patterns import matches


@register("force-targets")
@dataclass(frozen=True)
class ForceTargets(Pass):
    """Targets that come before those of messages and propagators, in the reverse pass.

    Cotangents still go to what a node reads; the other fields of its messages are redirected.

    Attributes:
        targets: patterns of the names of nodes and costs with propagators, each with a target: a name, a
            pattern, a `Kind`, a number of nodes, or a sequence of these.

    Raises:
        GraphError: a pattern that matches nothing.
    """

    name: ClassVar[str] = "force-targets"
    targets: Mapping[str, Any] = field(default_factory=dict)

    def apply(self, graph: PropagationGraph) -> PropagationGraph:
        nodes: list[Named | Cost] = [*graph.of(Named), *graph.of(Cost)]
        known = [node for node in nodes if node.rule is not None]
        changed: dict[str, Named | Cost] = {}
        for pattern, target in self.targets.items():
            matched = [node for node in known if matches(node.name, pattern)]
            if not matched:
                names = [node.name for node in known]
                raise GraphError(
                    message(f"the pattern {pattern!r} matches no node that sends", nearest(pattern, names))
                )
            changed.update((node.name, replace(node, forced=target)) for node in matched)
        return graph.with_nodes(*changed.values())
