"""The text form: a line for each node in program order, then routes, joins and schedule.

It is deterministic and loses nothing but code: numbers that fill a whole tensor stand where they
are read, without a line of their own, and ``x0..x99`` stands for a hundred names.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from propc.fx import operations
from propc.ir.nodes.compare_alternatives import CompareAlternatives
from propc.ir.nodes.cost import Cost
from propc.ir.nodes.expand import Expand
from propc.ir.nodes.leaves import Input, Parameter
from propc.ir.nodes.named import Named
from propc.ir.nodes.node import Node
from propc.ir.nodes.opaque import Opaque
from propc.ir.nodes.output import Output
from propc.ir.nodes.reduce import Reduce
from propc.ir.nodes.resample import Resample
from propc.ir.nodes.scan import Scan
from propc.ir.nodes.segment import Segment
from propc.ir.nodes.site import Site
from propc.ir.records import LOG_MEAN_EXP, Order, Ref, Route, Token
from propc.types import Plate, PlateKind

if TYPE_CHECKING:
    from propc.ir.graph import PropagationGraph

WIDEST = 32  # columns grow up to this width; what is longer sticks out


def to_text(graph: PropagationGraph) -> str:
    """The whole IR as text."""
    lines = [f"graph {graph.name}" + (f"  batch {graph.batch}" if graph.batch is not None else "")]
    if graph.plates:
        lines += ["plates", *_table([_plate(plate) for plate in graph.plates])]
    inside = {name for scan in graph.of(Scan) for name in scan.body}
    lines += _table([_cells(graph, node, node.name in inside) for node in graph if constant(node) is None])
    if graph.routes:
        lines += ["routes", *_table([_route(route) for route in graph.routes])]
    carried = [(Token(scan.name, i), c) for scan in graph.of(Scan) for i, c in enumerate(scan.tokens)]
    if graph.joins or carried:
        lines += ["joins", *(f"  {j.name} = {runs(map(str, j.members), ' + ')}" for j in graph.joins)]
        lines += [f"  {token} = {c.first}, then {c.again}" for token, c in carried]
    if graph.schedule.forward:
        lines += ["schedule", *_table(_schedule(graph))]
    return "\n".join(lines)


def constant(node: Node) -> str | None:
    """The number that fills a constant tensor, or None for anything else."""
    if not isinstance(node, Parameter) or not node.constant:
        return None
    try:
        float(node.path)
    except ValueError:
        return None
    return node.path


def operations_of(segment: Segment) -> list[str]:
    """Names of a segment's operations, in order."""
    names = (n.target if isinstance(n.target, str) else operations.name_of(n.target) for n in segment.body)
    return [name.strip("_") for name in names if name != "getitem"]


def law(site: Site, show: Callable[[str, Ref], str]) -> str:
    """A site's distribution with ``show(field, value)`` in place of each φ.

    Tensors that its text does not mention follow after a semicolon.
    """
    left = dict(zip(site.spec.fields, site.inputs))

    def value(match: re.Match[str]) -> str:
        name = match.group()
        same = [field for field in left if field.rpartition(".")[2] == name]
        return show(name, left.pop(min(same, key=lambda field: field.count(".")))) if same else name

    text = re.sub(r"\w+(?=[,)])", value, site.spec.text)
    return f"{text}; {', '.join(show(*item) for item in left.items())}" if left else text


def distribution(graph: PropagationGraph, site: Site) -> str:
    """A site's distribution with the numbers that are constant, such as ``Normal(loc, scale=0.1)``."""
    numbers = {ref: constant(graph[ref.node]) for ref in site.inputs}
    return law(site, lambda field, ref: field if numbers[ref] is None else f"{field}={numbers[ref]}")


def directions(node: Expand) -> str:
    """How an expand node takes variances at its target."""
    plural = "" if node.directions == 1 else "s"
    along = f"{node.directions} {'exact' if node.exact else 'random'} direction{plural}"
    if not node.norms:
        return f"{along} of {node.target}"
    return f"{'per-sample norms and ' + along if node.directions else 'exact per-sample norms'} of {node.target}"


def refit(node: Resample) -> str:
    """The Gaussian that a resample node draws from."""
    shrunk = f", shrinkage {node.shrinkage:g}" if node.shrinkage else ""
    return f"Gaussian of {node.width} dimension{'' if node.width == 1 else 's'}{shrunk}"


def plates_of(node: Node) -> tuple[str, ...]:
    """The plates that a node stands in: leading dimensions, then dimensions of its own shape."""
    return (*node.plates, *node.dims[1:])


def calls(graph: PropagationGraph, box: Opaque) -> str:
    """How a black box in plates is called."""
    return "plates in the batch" if graph.folds(box) else "once for each element"


def ratio(value: float) -> str:
    """A signal-to-noise ratio."""
    return f"{value:.2g}"


def runs(names: Iterable[str], separator: str = ", ") -> str:
    """Names in a row, those that count up or down by one as ``first..last``."""
    found: list[tuple[str, str, int]] = []  # first, last, and how many
    step = 0
    for name in names:
        low, _, high = name.partition("..")
        first, last, count = found[-1] if found else ("", "", 0)
        by = _step(last, low)
        if count and by and (count == 1 or by == step):
            found[-1] = first, high or low, count + (2 if high else 1)
            step = by
        else:
            found.append((low, high or low, 3 if high else 1))
            step = 1
    shown = (a if n == 1 else f"{a}..{b}" if n > 2 else separator.join((a, b)) for a, b, n in found)
    return separator.join(shown)


def _step(a: str, b: str) -> int:
    """1 from x8 to x9, -1 from x9 to x8, and 0 where the names do not follow each other."""
    parts = re.fullmatch(r"(.*?)(\d+)(\D*|/\d+)", a)
    if parts is None:
        return 0
    head, number, tail = parts.groups()
    return next((by for by in (1, -1) if b == f"{head}{int(number) + by}{tail}"), 0)


def _table(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Rows with aligned columns; the last column is as long as it is."""
    columns = range(len(rows[0]) - 1)
    widths = [max((len(row[i]) for row in rows if len(row[i]) <= WIDEST), default=0) for i in columns]
    return ["  " + "  ".join([*(row[i].ljust(widths[i]) for i in columns), row[-1]]) for row in rows]


def _cells(graph: PropagationGraph, node: Node, inside: bool) -> tuple[str, str, str]:
    """Name, types, and what the node does; of one inside the step of a scan the name is set off."""
    where = f"  # {node.where}" if str(node.where) else ""
    types = ", ".join(map(str, node.outputs))
    if names := plates_of(node):
        types = f"{types} in {', '.join(names)}"
    if isinstance(node, Output):
        return "return", types, f"({_reads(graph, node.inputs)}){where}"
    return f"{'  ' * inside}%{node.name}", types, f"{_does(graph, node)}{where}"


def _reads(graph: PropagationGraph, refs: Iterable[Ref]) -> str:
    return ", ".join(_value(graph, ref) for ref in refs)


def _value(graph: PropagationGraph, ref: Ref) -> str:
    source = graph.nodes.get(ref.node)  # None in a broken graph, which must print too
    number = constant(source) if source is not None else None
    return str(ref) if number is None else number


def _does(graph: PropagationGraph, node: Node) -> str:
    reads = _reads(graph, node.inputs)
    if isinstance(node, (Input, Parameter)):
        what = "constant" if isinstance(node, Parameter) and node.constant else node.kind.value
        return f"{what} {node.path}" + (", requires grad" if node.outputs[0].requires_grad else "")
    if isinstance(node, Segment):
        name = f"segment {node.stage.name}" if node.stage is not None else "segment"
        rows = f", {node.rows} rows at once" if node.rows else ""
        return f"{name}({reads}) {{{', '.join(operations_of(node))}}}{rows}"
    if isinstance(node, Site):
        return _site(graph, node)
    if isinstance(node, Expand):
        return f"expand({reads}) {{{directions(node)}}}"
    if isinstance(node, Resample):
        return f"resample({reads}) {{{refit(node)}}}"
    if isinstance(node, Reduce):
        return f"{node.how}({reads}) over {', '.join(node.over)}"
    if isinstance(node, CompareAlternatives):
        return f"compare({reads})"
    if isinstance(node, Scan):
        blocks = f" in {node.blocks} blocks" if node.blocks > 1 else ""
        return f"scan of {node.length} steps{blocks} ({reads}), then ({_reads(graph, node.again)})"
    if isinstance(node, Opaque):
        how = f", {calls(graph, node)}" if node.plates else ""
        return f"opaque({reads}){how}"
    assert isinstance(node, (Cost, Named))
    kind = "bound" if isinstance(node, Cost) and node.how == LOG_MEAN_EXP else node.kind.value
    return f"{kind}({reads})" + (f" by {node.propagator.name}" if node.propagator is not None else "")


def _plate(plate: Plate) -> tuple[str, str]:
    return plate.name, f"{described(plate)}{', common noise' if plate.common else ''}" + (
        f", {plate.chunk} at once" if plate.chunk is not None and plate.chunk < plate.size else ""
    )


def described(plate: Plate) -> str:
    """How many of what a plate holds, and their weights."""
    weights = "weights of the site" if plate.weighted else f"weights 1/{plate.size}"
    if plate.kind == PlateKind.ALTERNATIVES:
        weights = "weight 0"
    if plate.kind == PlateKind.DATA:
        return f"{plate.size} {plate.kind} of the data"
    kind = plate.kind if plate.size != 1 else plate.kind.removesuffix("s")
    return f"{plate.size} {kind}, {weights}"


def _site(graph: PropagationGraph, site: Site) -> str:
    rule = f" by {site.estimator}" if site.rule is not None else ""
    count = len(site.inputs)
    tangents = [ref for ref in site.tangents[:count] if ref is not None]
    along = f" along {_reads(graph, tangents)}" if tangents else ""
    along += f" with {_value(graph, Ref(site.tangents[-1].node))}" if site.tangents[count:] else ""  # type: ignore[union-attr]
    return f"site {law(site, lambda field, ref: f'{field}={_value(graph, ref)}')}{rule}{along}"


def _route(route: Route) -> tuple[str, str]:
    ends = runs(map(str, route.targets))
    through = ", ".join(str(t) for t in route.through if t not in route.targets)
    way = f" through {through}" if through else ""
    if route.fields == (route.kind,):
        return route.source, f"-> {ends}{way}  [{route.kind}]"
    fields = ", ".join(route.fields)
    under = route.baseline is not None and "cost" in route.fields
    baseline = f", {type(route.baseline).__name__}" if under else ""
    along = f" by {' and '.join(route.along)}" if route.along else ""
    return route.source, f"-> {ends}{way}  [{route.kind}: {fields}{along}{baseline}]"


def _schedule(graph: PropagationGraph) -> list[tuple[str, str]]:
    order = graph.schedule
    how = {0: "by messages", 1: "1 call of autograd"}.get(order.engine_calls, f"{order.engine_calls} calls of autograd")
    reverse = f"{runs(order.reverse)}  [{how}]" if order.reverse else "plain autograd"
    forward = "as above" if order.forward == tuple(graph.nodes) else runs(order.forward)
    return [("forward", forward), ("reverse", reverse), *_blocks(order)]


def _blocks(order: Order) -> list[tuple[str, str]]:
    """What runs again in the reverse pass."""
    if not order.blocks:
        return []
    ends = ", ".join(names[0] if len(names) == 1 else f"{names[0]} to {names[-1]}" for names in order.blocks)
    count = len(order.blocks)
    return [("again", f"{ends}  [{count} block{'' if count == 1 else 's'}]")]
