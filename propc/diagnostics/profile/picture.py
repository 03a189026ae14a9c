"""The graph with its nodes coloured by their share of the time of a step."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from os import PathLike

from propc.diagnostics.profile.node_rows import Part
from propc.ir.graph import PropagationGraph
from propc.printing.colour_scale import Legend, Paint, Tint
from propc.printing.dot import html, render, svg, to_dot
from propc.util.formatting import milliseconds, percent, size

SHARES = (  # upper ends of shares of the time and their colours
    (0.02, "#fbf8f3"),
    (0.05, "#fbecd3"),
    (0.15, "#f9d9a8"),
    (0.4, "#f4b878"),
    (math.inf, "#ea8c55"),
)


@dataclass(frozen=True)
class Shares(Paint):
    """Nodes by their share of the time.

    Attributes:
        parts: by node.
        whole: the seconds of a step.
    """

    parts: Mapping[str, Part]
    whole: float

    def legend(self) -> Legend:
        ends = [*(f"below {end:.0%}" for end, _ in SHARES[:-1]), f"{SHARES[-2][0]:.0%} or more"]
        return Legend("time", tuple(Tint(colour, end) for end, (_, colour) in zip(ends, SHARES)))

    def node(self, name: str) -> Tint | None:
        return self.run([name])

    def run(self, names: Sequence[str]) -> Tint | None:
        """The sums over nodes; a part in which there are several of them counts once."""
        found = list({self.parts[name].name: self.parts[name] for name in names if name in self.parts}.values())
        if not found:
            return None
        share = sum(part.seconds for part in found) / (self.whole or 1.0)
        forward, reverse = (milliseconds(sum(getattr(part, way) for part in found)) for way in ("forward", "reverse"))
        together = " together" if any(len(part.nodes) > 1 for part in found) else ""
        words = f"{forward} + {reverse} ms{together}, {percent(share)}%"
        kept = sum(part.kept for part in found)
        words += f", keeps {size(kept)}" if kept else ""
        return Tint(next(colour for end, colour in SHARES if share < end), words)


@dataclass(frozen=True)
class ProfiledGraph:
    """A graph after all passes, drawn with the time and the memory of every node.

    Attributes:
        graph: the graph itself.
        parts: what its nodes took.
    """

    graph: PropagationGraph
    parts: tuple[Part, ...] = field(repr=False)

    @cached_property
    def paint(self) -> Shares:
        """The colours of the nodes."""
        by_node = {node.name: part for part in self.parts for node in part.nodes}
        return Shares(by_node, sum(part.seconds for part in self.parts))

    def to_dot(self, *, fold: bool = True) -> str:
        """The graph in DOT, the language of Graphviz.

        Args:
            fold: show runs of repeated stages as one box, with the sum of what they took.
        """
        return to_dot(self.graph, fold=fold, paint=self.paint).to_string()

    def render(self, path: str | PathLike[str], *, fold: bool = True) -> str:
        """Draw the graph into a file (SVG, PNG, PDF or DOT, by its ending) with Graphviz; returns the path.

        Raises:
            PropcValueError: Graphviz is not installed, or the ending is unknown.
        """
        return render(self.graph, path, fold=fold, paint=self.paint)

    def _repr_svg_(self) -> str | None:
        return svg(self.graph, self.paint)

    def _repr_html_(self) -> str:
        return html(self.graph, self.paint)
