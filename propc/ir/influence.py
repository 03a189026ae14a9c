"""Which sites reach which values, and through what: derived from the graph, one bit a site."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from propc.ir.nodes.compare_alternatives import CompareAlternatives
from propc.ir.nodes.expand import Expand
from propc.ir.nodes.leaves import Input, Parameter
from propc.ir.nodes.node import Node
from propc.ir.nodes.opaque import Opaque
from propc.ir.nodes.output import Output
from propc.ir.nodes.resample import Resample
from propc.ir.nodes.scan import Scan
from propc.ir.nodes.segment import Segment
from propc.ir.nodes.site import Site
from propc.ir.records import Ref


@dataclass(frozen=True, slots=True)
class Reach:
    """What reaches a value; bit i of a mask is site i in program order.

    A resample node has a bit of its own, behind those of the sites, and stands for all sites before it.

    Attributes:
        any: sites, along any path.
        smooth: sites, along a path that autograd can follow, through other sites too.
        rough: sites, along a path that jumps (comparison, rounding, integers).
        parents: sites, along a smooth path that meets no other site.
        near: sites, along any path that meets no other site.
        leaves: inputs and parameters that want a gradient, along such a path.
        ancestors: inputs and parameters that want a gradient, along any path.
    """

    any: int = 0
    smooth: int = 0
    rough: int = 0
    parents: int = 0
    leaves: int = 0
    ancestors: int = 0
    near: int = 0

    def __or__(self, other: Reach) -> Reach:
        return Reach(
            self.any | other.any,
            self.smooth | other.smooth,
            self.rough | other.rough,
            self.parents | other.parents,
            self.leaves | other.leaves,
            self.ancestors | other.ancestors,
            self.near | other.near,
        )


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
        return _union(node, self.values)

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
    leaves = tuple(n.name for n in nodes.values() if isinstance(n, (Input, Parameter)) and n.outputs[0].requires_grad)
    draws = sites + tuple(n.name for n in nodes.values() if isinstance(n, Resample))
    index = {name: i for i, name in enumerate(draws)}
    bits = {name: 1 << i for i, name in enumerate(leaves)}
    values: dict[Ref, Reach] = {}
    phi: dict[str, Reach] = {}
    for node in nodes.values():
        if isinstance(node, (Input, Parameter)):
            bit = bits.get(node.name, 0)
            values[Ref(node.name)] = Reach(leaves=bit, ancestors=bit)
        elif isinstance(node, Segment):
            _through(node, values)
        elif isinstance(node, Site):
            joined = _union(node, values)
            phi[node.name] = joined
            own = 1 << index[node.name]
            drawn = Reach(joined.any | own, joined.smooth | own, joined.rough, own, 0, joined.ancestors, own)
            values[Ref(node.name)] = drawn
            for weights in node.made[1:]:
                values[weights] = drawn if node.alternatives else joined
        elif isinstance(node, Resample):
            joined = phi[node.name] = _union(node, values)
            own = 1 << index[node.name]
            for ref in node.made:
                values[ref] = Reach(own, own, 0, own, 0, joined.ancestors)
        elif isinstance(node, Opaque):
            joined = _union(node, values)
            for port in range(len(node.outputs)):
                values[Ref(node.name, port)] = Reach(
                    any=joined.any, rough=joined.any, ancestors=joined.ancestors, near=joined.near
                )
        elif isinstance(node, Scan):
            for ref, first in zip(node.made, node.inputs):
                values[ref] = values[first] | again.get(ref, Reach())
        elif isinstance(node, Expand):
            for port in range(len(node.outputs)):
                values[Ref(node.name, port)] = Reach()
        elif not isinstance(node, Output):
            alone = len(node.inputs) == 1 or isinstance(node, CompareAlternatives)
            values[Ref(node.name)] = values[node.inputs[0]] if alone else _union(node, values)
    return Influence(sites, draws, leaves, values, phi, index)


def _union(node: Node, values: Mapping[Ref, Reach]) -> Reach:
    joined = Reach()
    for ref in node.inputs:
        joined = joined | values[ref]
    return joined


def _through(node: Segment, values: dict[Ref, Reach]) -> None:
    """Carry reach through a segment, by what each output depends on."""
    reaches = [values[ref] for ref in node.inputs]
    for port, dependence in enumerate(node.dependence):
        every = smooth = rough = parents = leaves = ancestors = near = 0
        for i, reach in enumerate(reaches):
            if dependence.any >> i & 1:
                every |= reach.any
                rough |= reach.rough
                ancestors |= reach.ancestors
                near |= reach.near
            if dependence.smooth >> i & 1:
                smooth |= reach.smooth
                parents |= reach.parents
                leaves |= reach.leaves
            if dependence.rough >> i & 1:
                rough |= reach.any
        values[Ref(node.name, port)] = Reach(every, smooth, rough, parents, leaves, ancestors, near)
