"""Along which plates of the data a cost reaches a site element by element."""

from __future__ import annotations

from collections.abc import Callable

from propc.ir.graph import PropagationGraph
from propc.ir.nodes.cost import Cost
from propc.types import PlateKind


def along_of(graph: PropagationGraph, cost: Cost) -> Callable[[int], tuple[str, ...]]:
    """Plates along which element i of a cost depends on element i of a site alone, by the site's place in the graph.

    Both must be inside, and no site outside may stand between them: its draw may depend on all elements, and
    all elements of the cost on its draw. That other operations keep elements apart is checked at the first call
    (`propc.runtime.checks.values`).
    """
    plates = [plate.name for plate in graph.plates if plate.kind == PlateKind.DATA and plate.name in cost.dims]
    if not plates:
        return lambda site: ()
    tokens = [graph.lead(site) for site in graph.sites]
    through = {name: _through_outside(graph, cost, name) for name in plates}
    return lambda site: tuple(name for name in plates if name in tokens[site] and not through[name] >> site & 1)


def _through_outside(graph: PropagationGraph, cost: Cost, plate: str) -> int:
    """The sites that reach a cost by way of sites that are not inside a plate, as a mask."""
    influence = graph.influence
    reached, found = influence.values[cost.inputs[0]].any, 0
    for i, site in enumerate(graph.sites):
        if reached >> i & 1 and plate not in site.dims:
            found |= influence.phi[site.name].any
    return found
