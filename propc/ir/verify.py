"""The invariants of a propagation graph, one function each; all violations are reported at once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from propc.errors import GraphError
from propc.ir.nodes.output import Output
from propc.ir.nodes.scan import Scan
from propc.ir.records import Route, Token
from propc.types import BATCH, PlateKind

if TYPE_CHECKING:
    from propc.ir.graph import PropagationGraph


def verify(graph: PropagationGraph) -> None:
    """Raise a `GraphError` with every violation found."""
    found = [text for check in (_names, _values, _order) for text in check(graph)]
    sound = not found  # else nothing can be derived from the graph
    found += [text for check in (_kinds, _plates, _schedule) for text in check(graph)]
    found += _routes(graph, sound)
    if found:
        raise GraphError(f"the graph {graph.name!r} breaks {len(found)} invariant(s):\n  " + "\n  ".join(found))


def _names(graph: PropagationGraph) -> Iterator[str]:
    for key, node in graph.nodes.items():
        if key != node.name:
            yield f"node {node.name!r} is filed under {key!r}"
    if "output" not in graph.nodes or not isinstance(graph.nodes["output"], Output):
        yield "there is no output node"


def _values(graph: PropagationGraph) -> Iterator[str]:
    for node in graph:
        for ref in node.reads:
            source = graph.nodes.get(ref.node)
            if source is None:
                yield f"{node.called} {node.name!r} ({node.where}) reads {ref}, which does not exist"
            elif ref.port >= max(1, len(source.outputs)):
                yield (
                    f"{node.called} {node.name!r} ({node.where}) reads {ref}, but {ref.node!r} has "
                    f"{len(source.outputs)} output(s)"
                )


def _order(graph: PropagationGraph) -> Iterator[str]:
    seen: set[str] = set()
    for node in graph:
        for ref in node.inputs:
            if ref.node in graph.nodes and ref.node not in seen:
                yield f"{node.called} {node.name!r} ({node.where}) reads {ref} before it is made, or in a cycle"
        seen.add(node.name)


def _kinds(graph: PropagationGraph) -> Iterator[str]:
    """What each kind of node says of itself."""
    for node in graph:
        yield from node.problems(graph)


def _plates(graph: PropagationGraph) -> Iterator[str]:
    order = {plate.name: i for i, plate in enumerate(graph.plates)}
    if len(order) != len(graph.plates):
        yield "two plates have the same name"
    for node in graph:
        if not {*node.dims} <= {BATCH, *(plate.name for plate in graph.plates if plate.kind == PlateKind.DATA)}:
            yield f"{node.called} {node.name!r} ({node.where}) has elements of a plate that nobody has declared"
        if any(name not in order for name in node.plates):
            yield f"{node.called} {node.name!r} ({node.where}) stands in a plate that does not exist"
        elif sorted(node.plates, key=order.__getitem__, reverse=True) != list(node.plates):
            yield f"{node.called} {node.name!r} does not name its plates from the outermost to the first introduced"


def _routes(graph: PropagationGraph, sound: bool) -> Iterator[str]:
    """Routes and joins. Sets of tokens are bit masks: routes number the square of the horizon."""
    count = len(graph.sites)
    bits = {
        Token(site.name, j): 1 << (i + j * count)
        for i, site in enumerate(graph.sites)
        for j in range(site.rule.inlets if site.rule is not None else 0)
    }
    made: dict[Token, int] = dict(bits)
    carried = {Token(scan.name, i): sums.first for scan in graph.of(Scan) for i, sums in enumerate(scan.tokens)}
    for join in graph.joins:
        made.update({token: made[first] for token in join.members if (first := carried.get(token)) in made})
        made[Token(join.name)], wrong = _together(join.members, made)
        if wrong:
            yield f"join {join.name!r}: {wrong}"
    for route in graph.routes:
        source = graph.nodes.get(route.source)
        if not route.by_autograd:
            yield from _between(graph, route)
            continue
        if source is None or not source.sends:
            yield f"the route from {route.source!r} does not begin at a cost or resample node"
            continue
        if not route.targets:
            yield f"the route from {route.source!r} ({source.where}) has no end"
        mask, wrong = _together(route.targets, bits)
        if wrong:
            yield f"the route from {route.source!r} ({source.where}): {wrong}"
        made.update({token: made[first] for token in route.through if (first := carried.get(token)) in made})
        if not wrong and route.through and _together(route.through, made) != (mask, ""):
            yield (
                f"the route from {route.source!r} goes through {', '.join(map(str, route.through))}, which does "
                "not stand for its targets"
            )
        if sound and not wrong:
            stray = _sites(mask, count)
            for ref in source.inputs:
                stray &= ~graph.influence.values[ref].any
            for name in graph.influence.named(stray):
                yield (f"the route {route.source} -> {name} ends at a site that does not influence the {source.called}")


def _between(graph: PropagationGraph, route: Route) -> Iterator[str]:
    """A route between propagators ends at nodes that its pass visits later."""
    place = graph.wiring.place
    for target in (token.site for token in route.targets):
        if route.source not in place or target not in place:
            yield f"the route {route.source} -> {target} leads from or to a node that does not exist"
            continue
        further = place[target] - place[route.source]
        sound = further == 0 if route.kind == "kept" else further > 0 if route.kind == "forward" else further < 0
        if not sound:
            yield f"the {route.kind} route {route.source} -> {target} is a cycle"


def _sites(mask: int, count: int) -> int:
    """The sites of a mask of tokens."""
    found = 0
    while mask:
        found |= mask & ((1 << count) - 1)
        mask >>= count
    return found


def _together(tokens: Iterable[Token], known: dict[Token, int]) -> tuple[int, str]:
    """The mask of all tokens, and what is wrong with them."""
    mask = 0
    for token in tokens:
        bit = known.get(token)
        if bit is None:
            return mask, f"{str(token)!r} is no site that takes such messages"
        if mask & bit:
            return mask, f"it reaches {str(token)!r} twice"
        mask |= bit
    return mask, ""


def _schedule(graph: PropagationGraph) -> Iterator[str]:
    forward = graph.schedule.forward
    if not forward:
        return
    if sorted(forward) != sorted(graph.nodes):
        yield "the schedule does not run every node exactly once"
    yield from _blocks(graph)
    done: set[str] = set()
    for name in forward:
        node = graph.nodes.get(name)
        if node is not None and any(ref.node not in done for ref in node.inputs):
            yield f"the schedule runs {name!r} before what it reads"
        done.add(name)


def _blocks(graph: PropagationGraph) -> Iterator[str]:
    """Blocks are runs of the forward order, one behind the other, without the returned values."""
    place = {name: i for i, name in enumerate(graph.schedule.forward)}
    end = 0
    for number, names in enumerate(graph.schedule.blocks, 1):
        start = place.get(names[0], -1) if names else -1
        if start < end or graph.schedule.forward[start : start + len(names)] != names:
            yield f"block {number} of the schedule is no run of consecutive nodes behind the block before it"
        elif "output" in names:
            yield f"block {number} of the schedule holds the returned values"
        end = max(end, start + len(names))
