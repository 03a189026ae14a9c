"""Introduce plates: where a site draws several times, or takes all its values."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import ClassVar

from propc.graph import PropagationGraph
from propc.ir import Plate, Site, TensorType
from propc.passes.base import Pass, register


@register("introduce-plates")
@dataclass(frozen=True)
class IntroducePlates(Pass):
    """Give every site whose propagator draws several times a plate of its own, under its name.

    Args:
        chunk: how many elements of a plate segments hold at once, where an estimator says nothing; None is all.
    """

    name: ClassVar[str] = "introduce-plates"
    chunk: int | None = None

    def apply(self, graph: PropagationGraph) -> PropagationGraph:
        plates: list[Plate] = []
        sites: list[Site] = []
        for site in graph.sites:
            batched = graph.batched(site)
            plate = site.rule.plate(site, batched) if site.rule is not None else None
            if plate is None:
                continue
            plates.append(plate if plate.chunk is not None else replace(plate, chunk=self.chunk))
            kinds = (graph[ref.node].outputs[ref.port] for ref in site.inputs)
            weights = (_weights(site, kinds, batched),) if plate.weighted else ()
            sites.append(replace(site, plate=plate.name, outputs=(*site.outputs, *weights)))
        return replace(graph.with_nodes(*sites), plates=tuple(plates)) if plates else graph


def _weights(site: Site, kinds: Iterable[TensorType], batched: bool) -> TensorType:
    """The type of a plate's weights: one for each sample of the batch, in the precision of φ."""
    value = site.outputs[0]
    phi = next(kind for kind in kinds if kind.dtype.is_floating_point)
    return TensorType(value.shape[:1] if batched else (), phi.dtype, value.device, requires_grad=phi.requires_grad)
