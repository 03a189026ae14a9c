"""A plan as a compiler of stages sees it: what can be compiled, in which pieces, and which of them are the same."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from propc.ir.nodes.compare_alternatives import CompareAlternatives
from propc.ir.nodes.cost import Cost
from propc.ir.nodes.expand import Expand
from propc.ir.nodes.named import Named
from propc.ir.nodes.node import Node
from propc.ir.nodes.opaque import Opaque
from propc.ir.nodes.output import Output
from propc.ir.nodes.reduce import Reduce
from propc.ir.nodes.resample import Resample
from propc.ir.nodes.scan import Scan
from propc.ir.nodes.segment import Segment
from propc.ir.nodes.site import Site
from propc.ir.records import Route, Token
from propc.runtime.plan.codegen import StepCall, same
from propc.runtime.plan.liveness import Block, block
from propc.runtime.plan.token_reads import TokenSum

if TYPE_CHECKING:
    from propc.ir.graph import PropagationGraph
    from propc.runtime.executable import Executable

Plan = Sequence[tuple[Node, StepCall]]
LOOKS = "it checks values while it runs"  # on a CPU; elsewhere only in the first call


@dataclass(frozen=True, slots=True)
class Unit:
    """A stage: segments with the site or cost that they feed; it is compiled as one.

    Attributes:
        nodes: in order.
        block: their calls, with what enters and leaves.
        key: equal for units that do the same on values of the same kind.
    """

    nodes: tuple[Node, ...]
    block: Block
    key: Hashable

    def __str__(self) -> str:
        return self.nodes[-1].name


@dataclass(frozen=True, slots=True)
class UnitInput:
    """A call that only gives values other places, or joins tokens."""

    node: Node
    call: StepCall

    @property
    def joins(self) -> bool:
        """Whether it makes one token of several."""
        return isinstance(self.call.function, TokenSum)


@dataclass(frozen=True, slots=True)
class Apart:
    """A step that is run as it is.

    Attributes:
        why: what keeps it from being compiled.
    """

    node: Node
    call: StepCall
    why: str


Piece = Unit | UnitInput | Apart


def pieces(executable: Executable) -> list[Piece]:
    """The plan of an executable in pieces, in order."""
    plan = executable.plan
    calls = [call for _, call in plan]
    found: list[Piece] = []
    for start, stop in _stretches(executable, plan):
        node, call = plan[start]
        if is_wire(call):
            found.append(UnitInput(node, call))
        elif why := obstacle(executable, node):
            found.append(Apart(node, call, why))
        else:
            nodes = tuple(node for node, _ in plan[start:stop])
            piece = block(calls, start, stop, executable.places.returned)
            found.append(Unit(nodes, piece, _key(executable, nodes, piece)))
    return found


def _stretches(executable: Executable, plan: Plan) -> Iterator[tuple[int, int]]:
    """Starts and ends of pieces; one that can be compiled ends behind a site or a cost, and where a block begins."""
    start, inside = 0, blocks_of(executable.graph)
    for i, (node, call) in enumerate(plan):
        if start < i and inside.get(node.name) != inside.get(plan[start][0].name):
            yield start, i
            start = i
        if is_wire(call) or obstacle(executable, node):
            if start < i:
                yield start, i
            yield i, i + 1
            start = i + 1
        elif isinstance(node, (Site, Cost, Reduce)):
            yield start, i + 1
            start = i + 1
    if start < len(plan):
        yield start, len(plan)


def blocks_of(graph: PropagationGraph) -> dict[str, int]:
    """For each node of a block that runs again in the reverse pass, the number of the block."""
    return {name: i for i, names in enumerate(graph.schedule.blocks) for name in names}


def is_wire(call: StepCall) -> bool:
    """Whether a call computes nothing."""
    return call.function is same or (isinstance(call.function, TokenSum) and call.function.plain)


def obstacle(executable: Executable, node: Node) -> str:
    """What keeps a node's step from being compiled; empty if nothing is known to."""
    graph = executable.graph
    if isinstance(node, Opaque):
        return "a black box"
    if isinstance(node, Scan):
        return "it carries values from step to step"
    if isinstance(node, Named):
        return "a propagator that is called at every step"
    if isinstance(node, (Resample, CompareAlternatives)):
        return LOOKS
    if isinstance(node, Output):
        if executable.planner.rehearsal is not None:
            return "its reverse pass is rehearsed"
        return "it returns a value that must not take a gradient"
    if node.copy_of in executable.planner.copies.repeated or node.name in executable.planner.copies.repeated:
        return "it draws from the random numbers of another site"
    if any(graph.plate(name).chunk is not None for name in node.plates):
        return "its plate is held in chunks"
    if isinstance(node, Segment) and node.rows:
        return "it takes the rows of the batch in chunks"
    if isinstance(node, Site):
        return _site_obstacle(executable, node)
    if isinstance(node, (Cost, Reduce)):
        routes = executable.planner.routes.get(node.name, [])
        if any(route.baseline is not None and not route.baseline.traceable for route in routes):
            return "a baseline that keeps something, or is the user's own"
    return ""


def _site_obstacle(executable: Executable, site: Site) -> str:
    rule = site.rule
    if rule is None or not rule.traceable:
        return "a propagator that is not known to be traceable"
    if executable.planner.contexts[site.name].state is not None:
        return "its estimator keeps something from call to call"
    if rule.rehearses:
        return "its weights come from a rehearsal of the reverse pass"
    if rule.shares_weights:
        return "sites share their weights"
    if site.name in executable.planner.placings and executable.planner.placings[site.name].shared:
        return "elements of its plate draw from the same random numbers"
    return ""


def _key(executable: Executable, nodes: Sequence[Node], piece: Block) -> Hashable:
    number = {place: i for i, place in enumerate(piece.reads)}
    wiring = []
    for call in piece.calls:
        read = tuple(number[i] for i in call.reads)
        for i in call.writes:
            number[i] = len(number)
        wiring.append((read, tuple(number[i] for i in call.writes)))
    key = tuple(_code(executable, node, call) for node, call in zip(nodes, piece.calls)), tuple(wiring)
    try:
        hash(key)
    except TypeError:  # an option that is no hashable value
        return id(nodes[-1])
    return key


def _code(executable: Executable, node: Node, call: StepCall) -> Hashable:
    """What a node's call runs, besides what it reads."""
    graph = executable.graph
    if isinstance(call.function, TokenSum):
        return "join", id(call.function)
    plates = node.plates, node.dims, tuple(graph.plates_of(ref) for ref in node.inputs)
    if isinstance(node, Segment):
        assert node.stage is not None
        return "segment", id(node.stage.module), plates, node.spread
    if isinstance(node, Expand):
        return "expand", id(node.code)
    if isinstance(node, Site):
        tangents = tuple(ref is not None for ref in node.tangents)
        checked = tuple(i for i, _ in executable.planner.bounds.get(node.name, ()))
        return "site", node.rule, node.spec, plates, node.plate, node.alternatives, tangents, node.copy_of, checked
    if isinstance(node, Cost) and not node.plates and not node.dims:
        routes = executable.planner.routes.get(node.name, [])
        return "cost", tuple((route.baseline, route.over, route.along, _leads(graph, route)) for route in routes)
    return "node", id(node)


def _leads(graph: PropagationGraph, route: Route) -> tuple[object, ...]:
    """The leading dimensions of the tokens that a cost reads; joins have none of their own."""
    sites = (graph.nodes.get(token.site) for token in route.through)
    return tuple(graph.lead(site) if isinstance(site, Site) else None for site in sites)


def tokens_of(executable: Executable) -> frozenset[int]:
    """The places of tokens and joins."""
    return frozenset(place for ref, place in executable.places.slots.items() if isinstance(ref, Token))
