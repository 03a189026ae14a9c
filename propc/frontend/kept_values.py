"""What a site keeps for its reverse pass is its own, whatever the program writes into later."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

import torch.fx

from propc.fx.program import Program, mark_of

_MEMORY = count(-1, -1)  # of copies; that of traced tensors is an address


def keep_apart(program: Program) -> None:
    """Copy draws and parameters of sites into which the program writes behind the site.

    A score is taken of the draw that was made, at the parameters that it was made with. Without a copy torch would
    refuse, in the reverse pass, with neither site nor line. The graph is changed.
    """
    if not program.mutates:
        return
    written: set[int] = set()  # behind the node
    for node in reversed(list(program.graph.nodes)):
        mark = mark_of(node)
        if mark is not None and mark.spec is not None:
            if node.meta["memory"] in written:
                _copy_draw(program.graph, node)
            for phi in _inputs(node):
                if phi.meta.get("memory") in written:
                    _copy_parameter(program.graph, node, phi)
        if node.meta.get("writes"):
            written |= node.meta["written"]


def _inputs(site: torch.fx.Node) -> Iterator[torch.fx.Node]:
    yield from dict.fromkeys(site.all_input_nodes)


def _copy_draw(graph: torch.fx.Graph, site: torch.fx.Node) -> None:
    """The program goes on with a copy of the draw."""
    with graph.inserting_after(site):
        copy = graph.call_method("clone", (site,))
    copy.meta.update(_meta(site))
    site.replace_all_uses_with(copy, delete_user_cb=lambda user: user is not copy)
    site.meta["memory"] = next(_MEMORY)


def _copy_parameter(graph: torch.fx.Graph, site: torch.fx.Node, phi: torch.fx.Node) -> None:
    """The site goes by a copy of one of its parameters."""
    with graph.inserting_before(site):
        copy = graph.call_method("clone", (phi,))
    copy.meta.update(_meta(phi), memory=next(_MEMORY))
    site.replace_input_with(phi, copy)


def _meta(node: torch.fx.Node) -> dict[str, object]:
    kept = {key: node.meta[key] for key in ("type", "where", "memory") if key in node.meta}
    return kept | {"context": None, "rough": False}
