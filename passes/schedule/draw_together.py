"""Draw together: Normal sites in a row under total propagation draw their noise at once."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, ClassVar

import torch

from propc.fx.operations import is_random, name_of
from propc.ir.graph import PropagationGraph
from propc.ir.records import Cost, Input, Named, Node, Parameter, Ref, Segment, Site, Token
from propc.ir.repeatable import beside_writes
from propc.passes.pipeline import Pass, register
from propc.propagators import InverseVariance
from propc.runtime.autograd.redraw import LARGE

KEPT = 0.5  # of a row of sites, the last ones, is drawn apart, and the noise stays for the reverse pass
MOST = 2**18  # elements that one draw gives


@register("draw-together")
@dataclass(frozen=True)
class DrawTogether(Pass):
    """Let Normal sites in a row, all sent the same messages, draw their noise at once.

    Then the likelihood-ratio half of total propagation is a few operations for all of them. For the reverse pass, only
    the noise of the last sites of a row is kept, that of the others drawn again. Samples and gradients are those of
    sites that draw one by one. Only for small sites on a CPU, where the number of operations decides.

    Requires: a scheduled graph.
    Ensures: `Schedule.together` are sites in the forward order, with no other random draw among those of one draw.

    Args:
        eager: whether the plan runs operation by operation; other backends compile what sites do one by one.
    """

    name: ClassVar[str] = "draw-together"
    after: ClassVar[str] = "schedule"
    eager: bool = True

    def apply(self, graph: PropagationGraph) -> PropagationGraph:
        if not self.eager or graph.program is None or graph.general or graph.schedule.blocks:
            return graph
        together = tuple(part for row in _rows(graph) if len(row) > 1 for part in _parts(graph, row))
        return replace(graph, schedule=replace(graph.schedule, together=together)) if together else graph


def _parts(graph: PropagationGraph, row: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """A row in parts that draw together, the last of which is the one whose noise is kept."""
    most = MOST // math.prod(graph[row[0]].shape)
    last = min(max(2, int(KEPT * len(row))), most)
    ends = [*range(len(row) - last, 1, -most)][::-1]
    for start, stop in pairwise([0, *ends, len(row)]):
        yield tuple(row[start:stop])


def _rows(graph: PropagationGraph) -> Iterator[list[str]]:
    """Sites of one kind, with nothing between them that draws."""
    joins, written = _joins(graph), beside_writes(graph)
    row: list[str] = []
    last: Hashable = None
    for name in graph.schedule.forward:
        node, sound = graph[name], name not in written
        if sound and not isinstance(node, Site) and _is_quiet(node):
            continue
        kind = _kind(graph, node, joins) if sound and isinstance(node, Site) else None
        if kind is None or kind != last:
            yield row
            row, last = [], kind
        if kind is not None:
            row.append(name)
    yield row


def _is_quiet(node: Node) -> bool:
    """Whether a node is known to draw no random numbers."""
    if isinstance(node, Segment):
        return not any(is_random(step) or "generator" in step.kwargs for step in node.body)
    if isinstance(node, (Cost, Named)):
        return node.rule is None
    return isinstance(node, (Input, Parameter))


def _joins(graph: PropagationGraph) -> dict[Token, str]:
    """The one join that reads a token of a site, if nothing else does and it stands in no plates."""
    readers: dict[Token, list[str]] = {}
    for join in graph.joins:
        for member in join.members:
            readers.setdefault(member, []).append("" if join.plates else join.name)
    for route in graph.routes:
        for token in route.through:
            readers.setdefault(token, []).append("")
    return {token: names[0] for token, names in readers.items() if len(names) == 1 and names[0]}


def _kind(graph: PropagationGraph, site: Site, joins: dict[Token, str]) -> Hashable | None:
    """What sites that draw together have in common; None for one that cannot."""
    rule, normal, kind = site.rule, site.spec.normal(), site.outputs[0]
    if not isinstance(rule, InverseVariance) or not rule.at_once or normal != (0, 1) or Token(site.name) not in joins:
        return None
    apart = site.plates or site.dims or site.plate or site.alternatives or site.copy_of or site.turn or site.tangents
    if apart or kind.device.type != "cpu" or kind.dtype not in (torch.float32, torch.float64):
        return None
    size, batch, groups = math.prod(kind.shape), graph.batch, rule.weighting.groups
    if not batch or kind.shape[:1] != (batch,) or batch % groups or batch < 2 * groups or size >= LARGE:
        return None
    loc, scale = site.inputs
    types = [graph[ref.node].outputs[ref.port] for ref in (loc, scale)]
    alike = all((each.shape, each.dtype) == (kind.shape, kind.dtype) for each in types)
    if not alike or [each.requires_grad for each in types] != [True, False]:
        return None
    return rule, kind.shape, kind.dtype, _origin(graph, scale), joins[Token(site.name)]


def _origin(graph: PropagationGraph, ref: Ref) -> Hashable:
    """What a value is an expansion of: a value, or a step in the code of a segment."""
    node = graph[ref.node]
    if not isinstance(node, Segment):
        return ref
    step: Any = node.results[ref.port]
    while step not in node.arguments and _is_expansion(step):
        step = step.args[0]
    return _origin(graph, node.inputs[node.arguments.index(step)]) if step in node.arguments else (node.name, step)


def _is_expansion(step: Any) -> bool:
    target = step.target
    return (target if isinstance(target, str) else name_of(target)) == "expand"
