"""Introduce plates: where a site draws several times, or takes all its values."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import ClassVar

from propc.errors import EstimatorError
from propc.ir.graph import PropagationGraph
from propc.ir.nodes.site import Site
from propc.passes.pipeline import Pass, register
from propc.types import TensorType


@register("introduce-plates")
@dataclass(frozen=True)
class IntroducePlates(Pass):
    """Give every site whose propagator draws several times a plate of its own, under its name.

    Args:
        chunk: how many elements of a plate segments hold at once, where an estimator says nothing; None is all.
    """

    name: ClassVar[str] = "introduce-plates"
    needed: ClassVar[bool] = True
    chunk: int | None = None

    def apply(self, graph: PropagationGraph) -> PropagationGraph:
        plates = list(graph.plates)
        declared = {plate.name for plate in plates}
        sites: list[Site] = []
        for site in graph.sites:
            batched = graph.batched(site)
            _check_dims(graph, site)
            plate = site.rule.plate(site, batched) if site.rule is not None else None
            if plate is None:
                continue
            if plate.name in declared:
                raise _same_name(site)
            plates.append(plate if plate.chunk is not None else replace(plate, chunk=self.chunk))
            kinds = (graph[ref.node].outputs[ref.port] for ref in site.inputs)
            weights = (_weights(site, kinds, batched),) if plate.weighted else ()
            sites.append(replace(site, plate=plate.name, outputs=(*site.outputs, *weights)))
        return replace(graph.with_nodes(*sites), plates=tuple(plates)) if sites else graph


def _check_dims(graph: PropagationGraph, site: Site) -> None:
    """Check that in front of the plates of the data there is the batch."""
    if site.dims and not graph.batched(site):
        rows = "no cost has one" if graph.batch is None else f"the costs have {graph.batch} rows"
        raise site.error(
            f"it stands in a propc.plate, and its dimension 0, of length {site.spec.rows()}, is not the batch: {rows}",
            "A plate at dim=0 is the batch itself, and one behind it has the batch in front. Mark the costs inside "
            "with propc.cost.",
        )


def _same_name(site: Site) -> EstimatorError:
    return site.error(
        f"it draws several times, in a plate of its name, and a propc.plate is called {site.name!r} too",
        "Rename one of them.",
    )


def _weights(site: Site, kinds: Iterable[TensorType], batched: bool) -> TensorType:
    """The type of a plate's weights: one for each sample of the batch, in the precision of φ."""
    value = site.outputs[0]
    phi = next(kind for kind in kinds if kind.dtype.is_floating_point)
    return TensorType(value.shape[:1] if batched else (), phi.dtype, value.device, requires_grad=phi.requires_grad)
