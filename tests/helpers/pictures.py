"""Pictures read back, and the mark of tests that need Graphviz."""

from __future__ import annotations

import shutil
import warnings

import pydot
import pytest

needs_graphviz = pytest.mark.skipif(shutil.which("dot") is None, reason="Graphviz is not installed")


def parsed(graph, *, fold=True):
    """Names of the nodes, and (tail, head, attributes) of the edges, as pydot reads them back."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # pydot's parser uses old names of pyparsing
        (dot,) = pydot.graph_from_dot_data(graph.to_dot(fold=fold))
    nodes = [node.get_name().strip('"') for node in dot.get_nodes()]
    ends = ((edge.get_source(), edge.get_destination(), edge.get_attributes()) for edge in dot.get_edges())
    edges = [(tail.strip('"'), head.strip('"'), look) for tail, head, look in ends]
    return [name for name in nodes if name not in ("node", "edge")], edges
