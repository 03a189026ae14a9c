"""Roll scans: steps of a long scan that are alike become one node that runs as often as needed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

from propc.errors import ScanError, StepError
from propc.ir.graph import PropagationGraph
from propc.ir.nodes.node import Node
from propc.ir.nodes.scan import Scan
from propc.ir.nodes.site import Site
from propc.ir.reach import Reach
from propc.ir.records import Ref
from propc.passes.pipeline import Pass, register
from propc.passes.scan.carried_tokens import Sums
from propc.passes.scan.equal_steps import EqualSteps
from propc.types import PlateKind, Turn

# Steps of a scan that are traced one by one where what is copied grows with their square, as many as the thousand of
# `StepError.longest` make otherwise.
FEW = 32
_MASKS = ("any", "smooth", "rough", "parents", "near")


@register("roll-scans")
@dataclass(frozen=True)
class RollScans(Pass):
    """Let the step that stands for many of a `propc.scan` be one node with the step as its inner graph.

    Requires: the graph of a trace in which the steps around it are there too, with all routes. All passes before
    this one have treated the steps as those of an unrolled loop.

    Ensures: the graph of the unrolled loop, short of names. The steps before, the step itself and the one behind are
    the same in all that they do, read and send, each relative to itself; and what influences what no longer depends
    on how many steps lie between, from some number of them on. As a step's own influence is what
    it does with that of the step before, this then holds for any number of steps. So a message
    to all earlier steps goes to a sum of tokens that is carried from step to step.

    Raises:
        ScanError: it does not hold; traced with more steps, it may.
        StepError: something that needs every step to be a node of its own.
    """

    name: ClassVar[str] = "roll-scans"

    def apply(self, graph: PropagationGraph) -> PropagationGraph:
        turns = dict.fromkeys(node.turn for node in graph if node.turn is not None)
        sums = Sums(graph)
        for turn in turns:
            if turn.last > turn.first:
                _refuse(graph, turn)
                steps = EqualSteps(graph, turn)
                _check_influence(steps)
                graph = _rolled(steps, sums)
        return sums.finished(graph)


# -- what cannot be rolled ------------------------------------------------------------------


def _refuse(graph: PropagationGraph, turn: Turn) -> None:
    """Refuse what needs every step to be a node of its own."""
    if graph.general:
        vertex = next((graph[name] for name in graph.wiring.vertices), graph.output)
        raise _alone(vertex, turn, "its messages are more than cotangents, which nodes receive one by one")
    inside = {node.name: node for node in graph if node.turn is not None and node.turn.scan == turn.scan}
    for node in graph:
        if node.copy_of in inside:
            raise _alone(inside[node.copy_of], turn, "an estimator before it copies all that is behind it", FEW)
    for node in inside.values():
        rule = node.propagator
        if isinstance(node, Site) and node.rule is not None and node.rule.shares_weights:
            raise _alone(node, turn, "k_interval= lets it take the weights of another step")
        if isinstance(node, Site) and node.plate in inside and graph.plate(node.plate).kind != PlateKind.SAMPLES:
            raise _alone(node, turn, f"estimator {node.estimator!r} gives it a plate of its own in every step", FEW)
        if node.turn != turn or rule is None:
            continue
        if isinstance(node, Site) and node.rule is not None and node.rule.state(node.spec) is not None:
            raise _alone(node, turn, f"estimator {node.estimator!r} keeps something for it from call to call")
        if not isinstance(node, Site) and rule.keeps:
            raise _alone(node, turn, f"propagator {rule.name!r} keeps something for it from call to call")
    for route in graph.routes:
        source = inside.get(route.source)
        if source is not None and source.turn == turn and route.baseline is not None and route.baseline.stateful:
            what = f"baseline {type(route.baseline).__name__} keeps something for it from call to call"
            raise _alone(source, turn, what)


def _alone(node: Node, turn: Turn, why: str, longest: int = StepError.longest) -> StepError:
    error = node.error(
        f"{why}; in a long propc.scan many steps are one node",
        "Choose another estimator there, or write a Python loop in place of the scan.",
        StepError,
    )
    error.length, error.longest = turn.last, longest
    return error


# -- that influence has settled -------------------------------------------------------------


def _check_influence(steps: EqualSteps) -> None:
    """What reaches a value of the middle step no longer depends on how many steps it has come, from some on.

    Influence on a step's values is a function, the same in all steps and additive, of that on the values of the `lag`
    steps before. If as many steps in a row reach a value alike, so do all before them.
    """
    influence, lag = steps.graph.influence, max(1, steps.lag())
    if steps.first + lag >= steps.middle:
        raise steps.error("too few of them are alike to tell what they depend on")
    draws = [[influence.index[n.name] for n in nodes if n.draws] for nodes in steps.nodes]
    fixed = ~sum(1 << bit for bits in draws[steps.first :] for bit in bits)  # what is drawn before
    for position, node in enumerate(steps.nodes[steps.middle]):
        for ref in node.made:
            now = influence.values[ref]
            for name in _MASKS:
                mask = getattr(now, name)
                far = draws[steps.first : steps.first + lag + 1]
                if len({tuple([mask >> bit & 1 for bit in bits]) for bits in far}) > 1:
                    raise steps.error("how it depends on earlier steps has not settled", node)
            for back in range(1, lag + 1):
                before = influence.values[Ref(steps.nodes[steps.middle - back][position].name, ref.port)]
                if _lasting(now, fixed) != _lasting(before, fixed):
                    raise steps.error("what it depends on has not settled", node)


def _lasting(reach: Reach, fixed: int) -> tuple[int, ...]:
    return (*(getattr(reach, name) & fixed for name in _MASKS), reach.leaves, reach.ancestors)


def check_steady(graph: PropagationGraph, longer: PropagationGraph) -> None:
    """Check that passes do the same where more steps of a scan were traced.

    Args:
        graph, longer: with fewer and with more nodes for the first and last steps.

    Raises:
        ScanError: a step is treated otherwise.
    """
    for node in graph:
        if node.turn is None or not node.marked:
            continue
        low, _, high = node.name.partition("..")
        for name in (low, high or low):
            other = longer.nodes.get(name)
            if other is None or _role(other) != _role(node):
                error = node.error(
                    "a pass tells the steps of its scan apart by how many there are, and only some are traced",
                    "Let it go by names, or write a Python loop in place of propc.scan.",
                    ScanError,
                )
                error.length = max(each.turn.last for each in graph if each.turn is not None)
                raise error


def _role(node: Node) -> tuple[object, ...]:
    """What a node does with messages; a rule may hold code of its own trace."""
    return type(node), type(node.propagator), getattr(node, "estimator", "")


# -- rolling --------------------------------------------------------------------------------


def _rolled(steps: EqualSteps, sums: Sums) -> PropagationGraph:
    """The graph with the node."""
    graph, turn = steps.graph, steps.turn
    values = _Values(steps)
    tokens = sums.carried(steps)
    rewritten = {node.name: _moved(values, steps, node) for node in _behind(steps)}
    body = tuple(node.name for node in steps.nodes[steps.middle])
    outputs = tuple(graph[ref.node].outputs[ref.port] for ref in values.first)
    scan = Scan(
        name=turn.scan,
        inputs=tuple(values.first),
        outputs=outputs,
        where=steps.nodes[steps.middle][0].where,
        body=body,
        again=tuple(values.again),
        length=turn.last - turn.first + 1,
        tokens=tokens,
    )
    nodes: dict[str, Node] = {}
    for name, node in graph.nodes.items():
        if name == body[0]:
            nodes[scan.name] = scan
        nodes[name] = rewritten.get(name, node)
    return replace(graph, nodes=nodes)


def _behind(steps: EqualSteps) -> Iterator[Node]:
    """The nodes of the middle step and all behind it."""
    names = list(steps.graph.nodes)
    for name in names[names.index(steps.nodes[steps.middle][0].name) :]:
        yield steps.graph[name]


class _Values:
    """The values that steps carry."""

    def __init__(self, steps: EqualSteps) -> None:
        self.steps = steps
        self.known: dict[tuple[int, int, int], Ref] = {}
        self.first: list[Ref] = []
        self.again: list[Ref] = []

    def at(self, position: int, port: int, back: int) -> Ref:
        """What a node of the step makes, `back` steps before."""
        nodes, middle = self.steps.nodes, self.steps.middle
        if back == 0:
            return Ref(nodes[middle][position].name, port)
        key = position, port, back
        if key not in self.known:
            nearer = self.at(position, port, back - 1)
            self.known[key] = Ref(self.steps.turn.scan, len(self.first))
            self.first.append(Ref(nodes[middle - back][position].name, port))
            self.again.append(nearer)
        return self.known[key]


def _moved(values: _Values, steps: EqualSteps, node: Node) -> Node:
    """A node that reads carried values where it read those of earlier steps."""
    inside = node.name in steps.place

    def moved(ref: Ref) -> Ref:
        place = steps.like(ref.node)
        if place is None or place[0] > steps.middle:
            return ref
        if not inside:
            raise steps.error(f"{node.name!r} ({node.where}), behind the scan, reads a value of a step in the middle")
        return values.at(place[1], ref.port, steps.middle - place[0])

    return node.reading(moved)
