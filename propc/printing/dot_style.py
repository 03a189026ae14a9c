"""How things look in the picture: DOT attributes, with Graphviz's HTML-like labels."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterable, Sequence
from html import escape
from typing import TYPE_CHECKING, Any
from zlib import crc32

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
from propc.printing.colour_scale import Legend, Paint, Tint
from propc.printing.folding import DrawnBox
from propc.printing.text import calls, described, directions, distribution, operations_of, plates_of, refit, runs

if TYPE_CHECKING:
    from propc.ir.graph import PropagationGraph

Look = dict[str, Any]
Rule = Callable[["PropagationGraph", Any], Look]

INK, QUIET, LINE, FAINT, PALE, PAPER = "#1a202c", "#718096", "#a0aec0", "#cbd5e0", "#f7fafc", "#ffffff"
PINK, TEAL, BLUE = ("#b83280", "#fdeaf4"), ("#2c7a7b", "#e6fffa"), ("#2b6cb0", "#e6f1fb")
ESTIMATORS = {
    "rp": ("#2f855a", "#e8f7ee"),
    "lr": ("#c05621", "#fdf0e4"),
    "tp": ("#6b46c1", "#f1ebfd"),
    "gs": BLUE,
    "gs-tp": BLUE,
    "gr": BLUE,
    "shaped": BLUE,
    "plain": (QUIET, "#edf2f7"),
    "": (QUIET, PAPER),
}
OTHERS = (
    ("#2b6cb0", "#e6f1fb"),
    ("#b7791f", "#fdf6dc"),
    ("#086f83", "#e0f7fb"),
    ("#97266d", "#fbe6f3"),
    ("#4c51bf", "#eaebfd"),
    ("#9b2c2c", "#fde8e8"),
    ("#5a6b1e", "#f2f7dc"),
)
FONT = '"Helvetica,Arial,sans-serif"'

PAGE: Look = {
    "rankdir": "TB",
    "nodesep": "0.3",
    "ranksep": "0.35",
    "pad": "0.25",
    "bgcolor": PAPER,
    "fontname": FONT,
    "labelloc": "t",
    "labeljust": "l",
}
NODES: Look = {
    "shape": "box",
    "style": "filled",
    "color": LINE,
    "fillcolor": PAPER,
    "penwidth": "1.1",
    "height": "0.3",
    "margin": '"0.12,0.06"',
    "fontname": FONT,
    "fontsize": "11",
    "fontcolor": INK,
}
EDGES: Look = {"color": QUIET, "arrowsize": "0.6", "penwidth": "1.1"}
JOIN: Look = {
    "shape": "circle",
    "width": "0.2",
    "height": "0.2",
    "fixedsize": "true",
    "margin": "0",
    "color": PINK[0],
    "fillcolor": PINK[1],
    "fontcolor": PINK[0],
    "label": '"+"',
}


def title(graph: PropagationGraph, paint: Paint) -> str:
    """The graph's name, and a legend of the colours in use."""
    batch = f"  batch {graph.batch}" if graph.batch is not None else ""
    estimators = sorted({site.estimator for site in graph.sites} - {""})
    kinds = sorted({route.kind for route in graph.routes})
    legend = [_text(f"● {name}", _colours(name)[0], 10) for name in estimators]
    legend += [_text(f"┄ {_called(kind)}", _message_colour(kind), 10) for kind in kinds]
    head = _text(graph.name, size=14, bold=True) + (_text(batch, QUIET) if batch else "")
    lines = [head, "   ".join(legend), " "] if legend else [head, " "]
    if (meaning := paint.legend()) is not None:
        lines.insert(-1, _scale(meaning))
    return "<" + "".join(f'{line}<br align="left"/>' for line in lines) + ">"


def box_look(graph: PropagationGraph, box: DrawnBox, paint: Paint) -> Look:
    """A box, by what is in it, painted where something was measured."""
    if box.steps:
        return _repeated(graph, box, paint)
    if isinstance(box.nodes[0], (Input, Parameter)):
        return _leaves(box.nodes)
    (node,) = box.nodes
    look = {"tooltip": quoted(_tip(node)), **_RULES[type(node)](graph, node)}
    if node.copy_of:
        look |= {"style": '"filled,dashed"', "color": LINE}
    tint = paint.node(node.name)
    return look if tint is None else _painted(look, tint)


def edge_look(kind: str) -> Look:
    """A value, a leaf's value, a tangent or a message.

    Messages are drawn from the site to the cost with the arrow at the tail: they run against
    the values, and so the layout takes them along instead of being turned round by them.
    """
    if kind == "leaf":
        return {"color": FAINT, "weight": "1"}
    if kind == "value":
        return {"weight": "8"}
    if kind == "again":
        return {"color": LINE, "style": "dotted", "constraint": "false"}
    if kind == "tangent":
        return {"color": TEAL[0], "style": "dotted", "weight": "4"}
    ahead = {"arrowhead": "open"} if kind in ("forward", "kept") else {"dir": "back", "arrowtail": "open"}
    return {
        "color": _message_colour(kind),
        "style": "dashed",
        **ahead,
        "weight": "0",
        "tooltip": quoted(_called(kind)),
    }


def quoted(text: str) -> str:
    """A DOT string."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", " ")
    return f'"{escaped}"'


# -- boxes ----------------------------------------------------------------------------


def _site(graph: PropagationGraph, site: Site) -> Look:
    dark, light = _colours(site.estimator)
    rule = [_text(site.estimator, dark, bold=True)] if site.estimator else []
    rule += [_text(described(graph.plate(name)), dark, 9) for name in (site.plate, site.alternatives) if name]
    return {
        "shape": "ellipse",
        "color": dark,
        "fillcolor": light,
        "penwidth": "1.6",
        "margin": '"0.03,0.03"',
        "label": _lines([_head(site), _text(distribution(graph, site)), *rule]),
    }


def _cost(graph: PropagationGraph, cost: Cost) -> Look:
    return {
        "shape": "hexagon",
        "color": PINK[0],
        "fillcolor": PINK[1],
        "penwidth": "1.6",
        "margin": '"0.01,0.05"',
        "label": _lines([_head(cost), *_rule(cost)]),
    }


def _segment(graph: PropagationGraph, segment: Segment) -> Look:
    stage = [_small(segment.stage.name)] if segment.stage is not None else []
    return {"label": _lines([*(_text(line) for line in _operations(segment)), *stage])}


def _named(graph: PropagationGraph, node: Named) -> Look:
    return {"style": '"filled,rounded"', "color": INK, "penwidth": "1.6", "label": _lines([_head(node), *_rule(node)])}


def _rule(node: Node) -> list[str]:
    """The propagator of a named node or a cost."""
    return [_text(node.propagator.name, bold=True)] if node.propagator is not None else []


def _opaque(graph: PropagationGraph, node: Opaque) -> Look:
    how = f", {calls(graph, node)}" if node.plates else ""
    return {
        "color": INK,
        "fillcolor": INK,
        "label": _lines([_text(node.name, PAPER, 12, bold=True), _text(f"black box{how}", LINE, 9)]),
    }


def _expand(graph: PropagationGraph, node: Expand) -> Look:
    return {
        "shape": "cds",
        "color": TEAL[0],
        "fillcolor": TEAL[1],
        "margin": '"0.15,0.08"',
        "label": _lines([_text(directions(node), TEAL[0], 9)]),
    }


def _resample(graph: PropagationGraph, node: Resample) -> Look:
    return {
        "shape": "octagon",
        "color": BLUE[0],
        "fillcolor": BLUE[1],
        "penwidth": "1.6",
        "margin": '"0.03,0.03"',
        "label": _lines([_text(node.name, size=12, bold=True), _text(refit(node), BLUE[0])]),
    }


def _reduce(graph: PropagationGraph, node: Reduce) -> Look:
    dark, light = PINK if node.of_cost else (QUIET, PAPER)
    return {
        "shape": "invtrapezium",
        "color": dark,
        "fillcolor": light,
        "margin": '"0.0,0.03"',
        "label": _lines([_text(f"{node.how} over {', '.join(node.over)}", dark, 9)]),
    }


def _compare(graph: PropagationGraph, node: CompareAlternatives) -> Look:
    return {
        "shape": "invtrapezium",
        "color": PINK[0],
        "fillcolor": PINK[1],
        "margin": '"0.0,0.03"',
        "label": _lines([_text(f"compare on {node.over}", PINK[0], 9)]),
    }


def _scan(graph: PropagationGraph, node: Scan) -> Look:
    count = len(node.outputs)
    return {
        "style": '"filled,rounded"',
        "color": LINE,
        "fillcolor": PAPER,
        "margin": '"0.04,0.03"',
        "label": _lines([_text(f"carries {count} value{'' if count == 1 else 's'}", QUIET, 9)]),
    }


def scan_look(node: Scan) -> Look:
    """The frame round a scan's step."""
    blocks = f" in {node.blocks} blocks" if node.blocks > 1 else ""
    return {
        "style": '"rounded,dashed"',
        "color": LINE,
        "labeljust": "l",
        "label": _lines([_text(node.name, bold=True), _text(f"{node.length} times{blocks}", QUIET, 10)]),
        "tooltip": quoted(_tip(node)),
    }


def _output(graph: PropagationGraph, node: Output) -> Look:
    return {"style": '"filled,rounded"', "color": INK, "label": _lines([_text("return", bold=True)])}


_RULES: dict[type[Node], Rule] = {
    Site: _site,
    Cost: _cost,
    Segment: _segment,
    Named: _named,
    Opaque: _opaque,
    Expand: _expand,
    Resample: _resample,
    Reduce: _reduce,
    CompareAlternatives: _compare,
    Scan: _scan,
    Output: _output,
}


def _leaves(nodes: Sequence[Node]) -> Look:
    """Inputs and parameters, small; those that want a gradient in ink, others in grey."""
    lines = []
    for node in nodes:
        assert isinstance(node, (Input, Parameter))
        wanted = node.outputs[0].requires_grad
        lines.append(f"{_text(node.path, INK if wanted else QUIET, 9, bold=wanted)} {_small(_shape(node))}")
    if len(lines) > 10:
        lines = [*lines[:6], _small(f"… {len(lines) - 8} more …"), *lines[-2:]]
    return {
        "style": '"filled,rounded"',
        "color": "#e2e8f0",
        "fillcolor": PALE,
        "height": "0.2",
        "margin": '"0.08,0.04"',
        "label": _lines(lines),
    }


def _repeated(graph: PropagationGraph, box: DrawnBox, paint: Paint) -> Look:
    """A folded run: how many steps, and a row for each of the step's sites, costs and named values."""
    whole = paint.run([node.name for node in box.nodes])
    rows = [f'<td colspan="3">{_text(f"⋯ {box.repeats} × the same ⋯", QUIET, bold=True)}</td>']
    for nodes in box.steps:
        cells = _text(runs([node.name for node in nodes]), size=12, bold=True), *_role(graph, nodes[0])
        tint = paint.row([node.name for node in nodes])
        rows.append("".join(f'<td align="left">{cell}</td>' for cell in cells) + (_cell(tint) if tint else ""))
    if whole is not None:
        rows.append(f'<td colspan="3">{_text(whole.text)}</td>')
    table = "".join(f"<tr>{row}</tr>" for row in rows)
    return {
        "style": '"filled,rounded,dashed"',
        "color": QUIET,
        "fillcolor": PALE if whole is None else whole.colour,
        "penwidth": "1.6",
        "label": f'<<table border="0" cellspacing="4" cellpadding="0">{table}</table>>',
        "tooltip": quoted(_tip(box.nodes[0])),
    }


def _painted(look: Look, tint: Tint) -> Look:
    """A node filled with a colour, and what it means below the rest."""
    label = look["label"].removesuffix(">") + f"<br/>{_text(tint.text)}>"
    return {**look, "fillcolor": tint.colour, "label": label}


def _cell(tint: Tint) -> str:
    return f'<td align="left" bgcolor="{tint.colour}">{_text(tint.text)}</td>'


def _scale(meaning: Legend) -> str:
    """What the colours mean: coloured words would be too pale to read, so the colours are squares."""
    squares = [f"{_text('■', tint.colour, 12)} {_small(tint.text)}" for tint in meaning.tints]
    return "  ".join([_small(meaning.title), *squares])


def _role(graph: PropagationGraph, node: Node) -> tuple[str, str]:
    """What a node does and by which rule, as two cells."""
    if isinstance(node, Site):
        rule = node.estimator or "site"
        return _text(distribution(graph, node)), _text(rule, _colours(node.estimator)[0], bold=True)
    if isinstance(node, Resample):
        return _text(refit(node)), _text(node.kind.value, BLUE[0], bold=True)
    return "", _text(node.kind.value, PINK[0] if isinstance(node, Cost) else QUIET, bold=True)


def _operations(segment: Segment) -> list[str]:
    """Its operations on a few short lines."""
    names = operations_of(segment)
    if len(names) > 14:
        names = [*names[:8], f"… {len(names) - 11} more …", *names[-3:]]
    return textwrap.wrap(", ".join(names), 30, break_long_words=False) or ["views"]  # only taking values apart


def _tip(node: Node) -> str:
    """What is seen under the mouse in an SVG."""
    reason = f": {node.reason}" if isinstance(node, Site) and node.reason else ""
    return f"{node.kind.value} {node.name} {node.where}{reason}".replace("  ", " ")


# -- labels ---------------------------------------------------------------------------


def _called(kind: str) -> str:
    return kind if kind == "message" else f"{kind} message"


def _message_colour(kind: str) -> str:
    return PINK[0] if kind == "score" else _colours(kind)[0]


def _colours(name: str) -> tuple[str, str]:
    """Dark and light; of names that have none, by a hash that is the same everywhere."""
    return ESTIMATORS.get(name) or OTHERS[crc32(name.encode()) % len(OTHERS)]


def _head(node: Node) -> str:
    name = _text(node.name, size=12, bold=True)
    return f"{name} {_small(_shape(node))}" if node.outputs else name


def _shape(node: Node) -> str:
    names = plates_of(node)
    plates = f" in {', '.join(names)}" if names else ""
    return f"{list(node.shape)}{plates}"


def _text(text: str, colour: str = INK, size: int = 11, *, bold: bool = False) -> str:
    inner = f"<b>{escape(text)}</b>" if bold else escape(text)
    return f'<font color="{colour}" point-size="{size}">{inner}</font>'


def _small(text: str) -> str:
    return _text(text, QUIET, 9)


def _lines(lines: Iterable[str]) -> str:
    return f"<{'<br/>'.join(lines)}>"
