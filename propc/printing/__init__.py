"""A graph as text and as a picture: lines, DOT, folded equal steps, colours.

Given a graph and, for some pictures, a number for each node, it gives a string that is the same in every process. It
may import the frontend and all below.
"""

from propc.printing.dot import html, ratios, render, svg, to_dot
from propc.printing.text import to_text

__all__ = ["html", "ratios", "render", "svg", "to_dot", "to_text"]
