"""The picture of a graph, in DOT through pydot: values in grey, messages dashed and coloured."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from html import escape
from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING

from propc.errors import PropcValueError, message, nearest
from propc.ir.nodes.expand import Expand
from propc.ir.nodes.leaves import LeafNode
from propc.ir.nodes.scan import Scan
from propc.ir.records import Join, Route, Token
from propc.printing import dot_style
from propc.printing.colour_scale import NOTHING, Paint, Ratios
from propc.printing.folding import DrawnBox, boxes

if TYPE_CHECKING:
    import pydot

    from propc.ir.graph import PropagationGraph

ENDINGS = ("dot", "pdf", "png", "svg")
Link = tuple[str, str, str]  # two names in program order, and what leads from one to the other


def to_dot(graph: PropagationGraph, *, fold: bool = True, paint: Paint = NOTHING) -> pydot.Dot:
    """The graph as a pydot object. Equal graphs give equal text.

    Args:
        graph: any propagation graph, before or after passes.
        fold: draw runs of equal steps as one box, inputs and parameters beside every reader, and
            sums of tokens that costs share as one node with one way to each member. Without it
            every node is drawn once, and every pair of a site and a cost that sends to it.
        paint: what to colour nodes by.
    """
    import pydot  # where it is needed: who prints a graph as text loads none of it

    dot = pydot.Dot(
        dot_style.quoted(graph.name), graph_type="digraph", label=dot_style.title(graph, paint), **dot_style.PAGE
    )
    dot.set_node_defaults(**dot_style.NODES)
    dot.set_edge_defaults(**dot_style.EDGES)
    drawn = boxes(graph, fold=fold)
    joins = _shared_joins(graph) if fold else {}
    home = _homes(drawn, joins)
    frames = {scan.name: pydot.Cluster(scan.name, **dot_style.scan_look(scan)) for scan in graph.of(Scan)}
    framed = {name: scan.name for scan in graph.of(Scan) for name in (scan.name, *scan.body)}
    for box in drawn:
        scan = framed.get(box.reader or box.nodes[0].name)
        place = dot if scan is None else frames[scan]
        place.add_node(pydot.Node(dot_style.quoted(box.name), **dot_style.box_look(graph, box, paint)))
    for frame in frames.values():
        dot.add_subgraph(frame)  # type: ignore[arg-type]  # a cluster is one, whatever the stubs say
    for name in (name for name in joins if home[name] == name):
        dot.add_node(pydot.Node(dot_style.quoted(name), **dot_style.JOIN))
    for tail, head, kind in _between_boxes([*_values(graph, drawn), *_messages(graph, joins)], home):
        dot.add_edge(pydot.Edge(dot_style.quoted(tail), dot_style.quoted(head), **dot_style.edge_look(kind)))
    return dot


def render(graph: PropagationGraph, path: str | PathLike[str], fold: bool = True, paint: Paint = NOTHING) -> str:
    """Draw the graph into a file, whose ending says how; returns the path.

    Raises:
        PropcValueError: an unknown ending, or Graphviz's ``dot`` is missing or fails.
    """
    ending = Path(path).suffix.removeprefix(".").lower()
    if ending not in ENDINGS:
        raise PropcValueError(
            message(f"cannot draw a graph into {fspath(path)!r}: its ending is {ending!r}", nearest(ending, ENDINGS))
        )
    dot = to_dot(graph, fold=fold, paint=paint)
    Path(path).write_bytes(dot.to_string().encode() if ending == "dot" else _drawn(dot, ending))
    return fspath(path)


def svg(graph: PropagationGraph, paint: Paint = NOTHING) -> str | None:
    """The picture for notebooks; None without Graphviz."""
    try:
        text = _drawn(to_dot(graph, paint=paint), "svg").decode()
    except PropcValueError:
        return None
    return text[text.index("<svg") :]


def html(graph: PropagationGraph, paint: Paint = NOTHING) -> str:
    """The picture for notebooks, or the text form where Graphviz is missing."""
    picture = svg(graph, paint)
    return f"<pre>{escape(str(graph))}</pre>" if picture is None else picture


def _drawn(dot: pydot.Dot, ending: str) -> bytes:
    try:
        made = dot.create(format=ending, encoding="utf-8")
    except OSError as error:
        raise PropcValueError(
            message(
                "Graphviz's program 'dot', which draws the pictures, was not found",
                "Install Graphviz (https://graphviz.org/download), or render to a '.dot' file.",
            )
        ) from error
    except AssertionError as error:  # how pydot says that the program failed
        raise PropcValueError(
            message(f"Graphviz's program 'dot' failed: {error}", "Render to a '.dot' file to see what it was given.")
        ) from error
    assert isinstance(made, bytes)
    return made


def ratios(graph: PropagationGraph, snr: Mapping[str, float] | None) -> Paint:
    """Paint by signal-to-noise ratios of sites.

    Raises:
        PropcValueError: a ratio of what is no site.
    """
    if snr is None:
        return NOTHING
    names = [site.name for site in graph.sites]
    for name in snr:
        if name not in names:
            raise PropcValueError(message(f"snr= has a ratio of {name!r}, which is no site", nearest(name, names)))
    return Ratios(snr)


def _homes(drawn: Iterable[DrawnBox], joins: Mapping[str, str]) -> dict[str, str]:
    """In which box a node or a join is drawn; joins of costs inside a folded box are in it too."""
    home = {node.name: box.name for box in drawn if not box.reader for node in box.nodes}
    home.update((box.name, box.name) for box in drawn)
    folded = {box.name for box in drawn if box.steps}
    return home | {name: home[cost] if home[cost] in folded else name for name, cost in joins.items()}


def _values(graph: PropagationGraph, drawn: Iterable[DrawnBox]) -> Iterator[Link]:
    """The ways of values and tangents. What an expand node is about is in its label."""
    for box in drawn:
        if box.reader:
            yield box.name, box.reader, "leaf"
    for node in graph:
        for ref in node.inputs:
            leaf = isinstance(graph[ref.node], LeafNode)
            if not (leaf and isinstance(node, Expand)):
                yield ref.node, node.name, "leaf" if leaf else "value"
    for scan in graph.of(Scan):
        yield from ((ref.node, scan.name, "again") for ref in scan.again)
    for site in graph.sites:
        for tangent in site.tangents:
            if tangent is not None:
                yield tangent.node, site.name, "tangent"


def _messages(graph: PropagationGraph, drawn: Mapping[str, str]) -> Iterator[Link]:
    """The ways of messages: to sites, through joins where these are drawn."""
    joins = {join.name: join for join in graph.joins}
    kinds: dict[str, str] = {}
    for route in graph.routes:
        if not route.by_autograd:
            yield from _between_propagators(route)
            continue
        kinds.update((token.site, route.kind) for token in route.through)
        for name in _members(route.through if drawn else route.targets, joins, drawn):
            yield name, route.source, route.kind
    for scan in graph.of(Scan):
        for first in (carried.first for carried in scan.tokens if drawn):
            yield from ((name, scan.name, "score") for name in _members((first,), joins, drawn))
    for name in drawn:
        for member in _members(joins[name].members, joins, drawn):
            yield member, name, kinds[name]


def _between_propagators(route: Route) -> Iterator[Link]:
    for target in (token.site for token in route.targets):
        yield (route.source, target, route.kind) if route.kind != "message" else (target, route.source, route.kind)


def _members(tokens: Iterable[Token], joins: Mapping[str, Join], drawn: Mapping[str, str]) -> Iterator[str]:
    """Sites and drawn joins behind tokens, some of which are joins."""
    for token in tokens:
        if token.site in joins and token.site not in drawn:
            yield from _members(joins[token.site].members, joins, drawn)
        else:
            yield token.site


def _shared_joins(graph: PropagationGraph) -> dict[str, str]:
    """Joins that are read more than once, with the cost that reads them first."""
    reads = Counter(token.site for route in graph.routes for token in route.through)
    reads.update(token.site for join in graph.joins for token in join.members)
    first: dict[str, str] = {}
    for route in graph.routes:
        for token in route.through:
            first.setdefault(token.site, route.source)
    shared = (join.name for join in graph.joins if reads[join.name] > 1)
    return {name: first[name] for name in shared if name in first}


def _between_boxes(links: Iterable[Link], home: Mapping[str, str]) -> Iterator[Link]:
    """Each link once between two boxes; those that stay inside a box are not drawn."""
    seen = set()
    for tail, head, kind in links:
        if tail not in home or head not in home:
            continue
        link = home[tail], home[head], kind
        inside = link[0] == link[1] and kind != "kept"
        if not inside and link not in seen:
            seen.add(link)
            yield link
