"""Which sites reach which values, and through what: derived from the graph, one bit a site."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from propc.ir.nodes.leaves import LeafNode
from propc.ir.nodes.node import Node
from propc.ir.nodes.scan import Scan
from propc.ir.nodes.site import Site
from propc.ir.reach import Reach, together
from propc.ir.records import Ref


@dataclass(frozen=True)
class Influence:
    """Reach of every value of a graph; `phi` is that of all inputs of each site or resample node together.

    `draws` are the owners of the bits: the sites, then the resample nodes.
    """

    sites: tuple[str, ...]
    draws: tuple[str, ...]
    leaves: tuple[str, ...]
    values: Mapping[Ref, Reach]
    phi: Mapping[str, Reach]
    index: Mapping[str, int] = field(repr=False)

    def upstream(self, value: Ref) -> tuple[str, ...]:
        """The sites that influence a value, in program order, then resample nodes."""
        return self.named(self.values[value].any)

    def at(self, node: Node) -> Reach:
        """What reaches a node, through all its inputs."""
        return together([self.values[ref] for ref in node.inputs])

    def named(self, mask: int) -> tuple[str, ...]:
        """The sites and resample nodes in a mask."""
        found = []
        while mask:
            low = mask & -mask
            found.append(self.draws[low.bit_length() - 1])
            mask ^= low
        return tuple(found)

    def reaches(self, site: str, value: Ref) -> bool:
        """Whether a site or resample node influences a value."""
        return bool(self.values[value].any >> self.index[site] & 1)


def find_influence(nodes: Mapping[str, Node]) -> Influence:
    """Walk the graph in program order: once, and again for what scans carry from step to step."""
    scans = [node for node in nodes.values() if isinstance(node, Scan)]
    found = _walk(nodes, {})
    while scans:
        again = {made: found.values[ref] for scan in scans for made, ref in zip(scan.made, scan.again)}
        if all(found.values[made] == found.values[made] | reach for made, reach in again.items()):
            break
        found = _walk(nodes, again)
    return found


def _walk(nodes: Mapping[str, Node], again: Mapping[Ref, Reach]) -> Influence:
    """Walk the graph once; `again` is what reaches carried values from the step before."""
    sites = tuple(n.name for n in nodes.values() if isinstance(n, Site))
    leaves = tuple(n.name for n in nodes.values() if isinstance(n, LeafNode) and n.outputs[0].requires_grad)
    draws = sites + tuple(n.name for n in nodes.values() if n.draws and not isinstance(n, Site))
    index = {name: i for i, name in enumerate(draws)}
    bits = {name: 1 << i for names in (leaves, draws) for i, name in enumerate(names)}
    values: dict[Ref, Reach] = {}
    phi: dict[str, Reach] = {}
    for name, node in nodes.items():
        given = [values[ref] for ref in node.inputs]
        if node.draws:
            given = [phi.setdefault(name, together(given))]
        for port, reach in enumerate(node.reach(given, bits.get(name, 0))):
            ref = Ref(name, port)
            values[ref] = reach | again[ref] if ref in again else reach
    return Influence(sites, draws, leaves, values, phi, index)
