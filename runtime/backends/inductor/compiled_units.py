"""A plan as a compiler of stages sees it: what can be compiled, in which pieces, and which of them are the same."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import dataclass

from propc.ir.nodes.node import Node
from propc.ir.records import Token
from propc.runtime.lowering.lowering import lowering
from propc.runtime.lowering.token_reads import TokenSum
from propc.runtime.plan.blocks import blocks_of
from propc.runtime.plan.liveness import Block, block
from propc.runtime.plan.step import Step, same
from propc.runtime.planned_graph import PlannedGraph


@dataclass(frozen=True, slots=True)
class Unit:
    """A stage: segments with the site or cost that they feed; it is compiled as one.

    Attributes:
        block: its steps, with what enters and leaves.
        key: equal for units that do the same on values of the same kind.
    """

    block: Block
    key: Hashable

    @property
    def nodes(self) -> tuple[Node, ...]:
        """In order."""
        return tuple(step.node for step in self.block.steps)

    def __str__(self) -> str:
        return self.nodes[-1].name


@dataclass(frozen=True, slots=True)
class UnitInput:
    """A step that only gives values other places, or joins tokens."""

    step: Step

    @property
    def joins(self) -> bool:
        """Whether it makes one token of several."""
        return isinstance(self.step.function, TokenSum)


@dataclass(frozen=True, slots=True)
class Apart:
    """A step that is run as it is.

    Attributes:
        why: what keeps it from being compiled.
    """

    step: Step
    why: str


Piece = Unit | UnitInput | Apart


def pieces(planned: PlannedGraph) -> list[Piece]:
    """The plan of an executable in pieces, in order."""
    plan = planned.plan
    found: list[Piece] = []
    for start, stop in _stretches(planned):
        step = plan[start]
        if is_wire(step):
            found.append(UnitInput(step))
        elif why := obstacle(planned, step.node):
            found.append(Apart(step, why))
        else:
            piece = block(plan, start, stop, planned.places.returned)
            found.append(Unit(piece, _key(planned, piece)))
    return found


def _stretches(planned: PlannedGraph) -> Iterator[tuple[int, int]]:
    """Starts and ends of pieces; one that can be compiled ends behind a site or a cost, and where a block begins."""
    plan, start, inside = planned.plan, 0, blocks_of(planned.graph)
    for i, step in enumerate(plan):
        if start < i and inside.get(step.node.name) != inside.get(plan[start].node.name):
            yield start, i
            start = i
        if is_wire(step) or obstacle(planned, step.node):
            if start < i:
                yield start, i
            yield i, i + 1
            start = i + 1
        elif lowering(step.node).ends_stage:
            yield start, i + 1
            start = i + 1
    if start < len(plan):
        yield start, len(plan)


def is_wire(step: Step) -> bool:
    """Whether a step computes nothing."""
    return step.function is same or (isinstance(step.function, TokenSum) and step.function.plain)


def obstacle(planned: PlannedGraph, node: Node) -> str:
    """What keeps a node's step from being compiled; empty if nothing is known to."""
    copies = planned.planner.copies.repeated
    if why := lowering(node).obstacle(planned.planner, node):
        return why
    if node.copy_of in copies or node.name in copies:
        return "it draws from the random numbers of another site"
    if any(planned.graph.plate(name).chunk is not None for name in node.plates):
        return "its plate is held in chunks"
    return ""


def _key(planned: PlannedGraph, piece: Block) -> Hashable:
    number = {place: i for i, place in enumerate(piece.reads)}
    wiring = []
    for step in piece.steps:
        read = tuple(number[i] for i in step.reads)
        for i in step.writes:
            number[i] = len(number)
        wiring.append((read, tuple(number[i] for i in step.writes)))
    key = tuple(_code(planned, step) for step in piece.steps), tuple(wiring)
    try:
        hash(key)
    except TypeError:  # an option that is no hashable value
        return id(piece.steps[-1].node)
    return key


def _code(planned: PlannedGraph, step: Step) -> Hashable:
    """What a step runs, besides what it reads."""
    if isinstance(step.function, TokenSum):
        return id(step.function)
    return lowering(step.node).key(planned.planner, step.node)


def tokens_of(planned: PlannedGraph) -> frozenset[int]:
    """The places of tokens and joins."""
    return frozenset(place for ref, place in planned.places.slots.items() if isinstance(ref, Token))
