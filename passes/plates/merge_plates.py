"""Merge plates: sites that draw equally often share a plate, so that K samples stay K along a sequence."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from propc.ir.graph import PropagationGraph
from propc.passes.pipeline import Pass, register
from propc.types import Plate, PlateKind


@register("merge-plates")
@dataclass(frozen=True)
class MergePlates(Pass):
    """Let plates of as many samples be one, under the name of the first.

    A sequence of sites with K samples then has K joint trajectories, not K^H; element k of one site meets
    element k of another. Every element is a draw of the whole program, whatever the sites have to do with
    each other. Antithetic draws are opposite for all elements of one joint law: sites share a pair where none
    influences another. Plates with weights, such as enumerations, stay apart.
    """

    name: ClassVar[str] = "merge-plates"
    needed: ClassVar[bool] = True

    def apply(self, graph: PropagationGraph) -> PropagationGraph:
        groups: dict[Plate, list[str]] = {}
        renamed: dict[str, str] = {}
        for plate in graph.plates:
            groups.setdefault(replace(plate, name=""), []).append(plate.name)
        for kind, names in groups.items():
            if kind.kind == PlateKind.SAMPLES:
                renamed.update(dict.fromkeys(names[1:], names[0]))
            elif kind.kind == PlateKind.ANTITHETIC:
                renamed.update(_independent(graph, names))
        if not renamed:
            return graph
        sites = [replace(site, plate=renamed[site.plate]) for site in graph.sites if site.plate in renamed]
        kept = tuple(plate for plate in graph.plates if plate.name not in renamed)
        return replace(graph.with_nodes(*sites), plates=kept)


def _independent(graph: PropagationGraph, names: list[str]) -> dict[str, str]:
    """Sites that share the plate of an earlier one, as no site of that plate influences them."""
    influence = graph.influence
    shared: dict[str, int] = {}  # the sites of a plate, as a mask
    found: dict[str, str] = {}
    for name in names:
        before = influence.phi[name].any
        plate = next((first for first, mask in shared.items() if not mask & before), name)
        shared[plate] = shared.get(plate, 0) | 1 << influence.index[name]
        if plate != name:
            found[name] = plate
    return found
