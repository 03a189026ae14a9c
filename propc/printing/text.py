"""The text form: a line for each node in program order, then routes, joins and schedule.

It is deterministic and loses nothing but code: numbers that fill a whole tensor stand where they
are read, without a line of their own, and ``x0..x99`` stands for a hundred names.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from propc.ir.nodes.node import Node
from propc.ir.nodes.output import Output
from propc.ir.nodes.scan import Scan
from propc.ir.records import Order, Route, Token
from propc.types import Plate

if TYPE_CHECKING:
    from propc.ir.graph import PropagationGraph

# Columns grow up to this width; what is longer sticks out. A choice, for the looks of the text: names of nodes in
# modules of modules fit, lists of inputs do not.
WIDEST = 32


def to_text(graph: PropagationGraph) -> str:
    """The whole IR as text."""
    lines = [f"graph {graph.name}" + (f"  batch {graph.batch}" if graph.batch is not None else "")]
    if graph.plates:
        lines += ["plates", *_table([_plate(plate) for plate in graph.plates])]
    inside = {name for scan in graph.of(Scan) for name in scan.body}
    lines += _table([_cells(graph, node, node.name in inside) for node in graph if node.number is None])
    if graph.routes:
        lines += ["routes", *_table([_route(route) for route in graph.routes])]
    carried = [(Token(scan.name, i), c) for scan in graph.of(Scan) for i, c in enumerate(scan.tokens)]
    if graph.joins or carried:
        lines += ["joins", *(f"  {j.name} = {runs(map(str, j.members), ' + ')}" for j in graph.joins)]
        lines += [f"  {token} = {c.first}, then {c.again}" for token, c in carried]
    if graph.schedule.forward:
        lines += ["schedule", *_table(_schedule(graph))]
    return "\n".join(lines)


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
    if names := node.stands_in:
        types = f"{types} in {', '.join(names)}"
    if isinstance(node, Output):
        return "return", types, f"{node.text(graph)}{where}"
    return f"{'  ' * inside}%{node.name}", types, f"{node.text(graph)}{where}"


def _plate(plate: Plate) -> tuple[str, str]:
    return plate.name, f"{plate.contents}{', common noise' if plate.common else ''}" + (
        f", {plate.chunk} at once" if plate.chunk is not None and plate.chunk < plate.size else ""
    )


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
