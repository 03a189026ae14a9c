"""Merge plates: sites that draw equally often share a plate, so that K samples stay K along a sequence."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from propc.graph import PropagationGraph
from propc.ir import Plate
from propc.passes.base import Pass, register


@register("merge-plates")
@dataclass(frozen=True)
class MergePlates(Pass):
    """Let plates of as many samples be one, under the name of the first.

    A sequence of sites with K samples then has K joint trajectories, not K^H; element k of one site meets
    element k of another. Every element is a draw of the whole program, whatever the sites have to do with
    each other. Plates with weights, such as enumerations, stay apart.
    """

    name: ClassVar[str] = "merge-plates"

    def apply(self, graph: PropagationGraph) -> PropagationGraph:
        first: dict[Plate, str] = {}
        renamed: dict[str, str] = {}
        for plate in graph.plates:
            kind = replace(plate, name="")
            known = plate.name if plate.weighted or plate.kind != "samples" else first.setdefault(kind, plate.name)
            if known != plate.name:
                renamed[plate.name] = known
        if not renamed:
            return graph
        sites = [replace(site, plate=renamed[site.plate]) for site in graph.sites if site.plate in renamed]
        kept = tuple(plate for plate in graph.plates if plate.name not in renamed)
        return replace(graph.with_nodes(*sites), plates=kept)
