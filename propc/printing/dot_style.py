"""How things look in the picture: DOT attributes, with Graphviz's HTML-like labels."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from propc.ir.nodes.leaves import LeafNode
from propc.ir.nodes.look import FAINT, INK, LINE, PALE, PAPER, PINK, QUIET, TEAL, Look, Words, colours_of
from propc.ir.nodes.node import Node
from propc.ir.nodes.scan import Scan
from propc.ir.nodes.site import Site
from propc.printing.colour_scale import Legend, Paint, Tint
from propc.printing.folding import DrawnBox
from propc.printing.text import runs

if TYPE_CHECKING:
    from propc.ir.graph import PropagationGraph

Attributes = dict[str, Any]

FONT = '"Helvetica,Arial,sans-serif"'

PAGE: Attributes = {
    "rankdir": "TB",
    "nodesep": "0.3",
    "ranksep": "0.35",
    "pad": "0.25",
    "bgcolor": PAPER,
    "fontname": FONT,
    "labelloc": "t",
    "labeljust": "l",
}
NODES: Attributes = {
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
EDGES: Attributes = {"color": QUIET, "arrowsize": "0.6", "penwidth": "1.1"}
JOIN: Attributes = {
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
    legend = [_text(f"● {name}", colours_of(name)[0], 10) for name in estimators]
    legend += [_text(f"┄ {_called(kind)}", _message_colour(kind), 10) for kind in kinds]
    head = _text(graph.name, size=14, bold=True) + (_text(batch, QUIET) if batch else "")
    lines = [head, "   ".join(legend), " "] if legend else [head, " "]
    if (meaning := paint.legend()) is not None:
        lines.insert(-1, _scale(meaning))
    return "<" + "".join(f'{line}<br align="left"/>' for line in lines) + ">"


def box_look(graph: PropagationGraph, box: DrawnBox, paint: Paint) -> Attributes:
    """A box, by what is in it, painted where something was measured."""
    if box.steps:
        return _repeated(graph, box, paint)
    if isinstance(box.nodes[0], LeafNode):
        return _leaves(graph, box.nodes)
    (node,) = box.nodes
    look = {"tooltip": quoted(_tip(node)), **_attributes(node.look(graph))}
    if node.copy_of:
        look |= {"style": '"filled,dashed"', "color": LINE}
    tint = paint.node(node.name)
    return look if tint is None else _painted(look, tint)


def edge_look(kind: str) -> Attributes:
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


def scan_look(node: Scan) -> Attributes:
    """The frame round a scan's step."""
    return {**_attributes(node.frame()), "tooltip": quoted(_tip(node))}


def _attributes(look: Look) -> Attributes:
    """Attributes of DOT; what would end a value there is quoted."""
    made = {name: quoted(value) if "," in value else value for name, value in look.attributes.items()}
    return {**made, "label": _label(map(_line, look.lines))}


def _role(graph: PropagationGraph, node: Node) -> tuple[str, str]:
    """What a node does and by which rule, as two cells."""
    what, rule = node.role(graph)
    return "" if what is None else _words(what), _words(rule)


def _leaves(graph: PropagationGraph, nodes: Sequence[Node]) -> Attributes:
    """Inputs and parameters that one box reads."""
    looks = [node.look(graph) for node in nodes]
    lines = [_line(line) for look in looks for line in look.lines]
    if len(lines) > 10:
        lines = [*lines[:6], _small(f"… {len(lines) - 8} more …"), *lines[-2:]]
    return {**_attributes(looks[0]), "label": _label(lines)}


def _repeated(graph: PropagationGraph, box: DrawnBox, paint: Paint) -> Attributes:
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


def _painted(look: Attributes, tint: Tint) -> Attributes:
    """A node filled with a colour, and what it means below the rest."""
    label = look["label"].removesuffix(">") + f"<br/>{_text(tint.text)}>"
    return {**look, "fillcolor": tint.colour, "label": label}


def _cell(tint: Tint) -> str:
    return f'<td align="left" bgcolor="{tint.colour}">{_text(tint.text)}</td>'


def _scale(meaning: Legend) -> str:
    """What the colours mean: coloured words would be too pale to read, so the colours are squares."""
    squares = [f"{_text('■', tint.colour, 12)} {_small(tint.text)}" for tint in meaning.tints]
    return "  ".join([_small(meaning.title), *squares])


def _tip(node: Node) -> str:
    """What is seen under the mouse in an SVG."""
    reason = f": {node.reason}" if isinstance(node, Site) and node.reason else ""
    return f"{node.called} {node.name} {node.where}{reason}".replace("  ", " ")


# -- labels ---------------------------------------------------------------------------


def _called(kind: str) -> str:
    return kind if kind == "message" else f"{kind} message"


def _message_colour(kind: str) -> str:
    return PINK[0] if kind == "score" else colours_of(kind)[0]


def _text(text: str, colour: str = INK, size: int = 11, *, bold: bool = False) -> str:
    inner = f"<b>{escape(text)}</b>" if bold else escape(text)
    return f'<font color="{colour}" point-size="{size}">{inner}</font>'


def _small(text: str) -> str:
    return _text(text, QUIET, 9)


def _words(words: Words) -> str:
    return _text(words.text, words.colour, words.size, bold=words.bold)


def _line(line: Iterable[Words]) -> str:
    return " ".join(map(_words, line))


def _label(lines: Iterable[str]) -> str:
    return f"<{'<br/>'.join(lines)}>"
