"""Split additive costs: a site receives only the costs downstream of it."""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass, fields, replace
from typing import ClassVar

import torch.fx

from propc.errors import GraphError, PropcValueError, message
from propc.frontend.cost_terms import additive_terms, aside, in_plates, tainted, with_terms
from propc.frontend.cut import cut
from propc.fx.program import Program, mark_of
from propc.ir.graph import PropagationGraph
from propc.ir.nodes.node import Node
from propc.passes.pipeline import Pass, register


@register("split-costs")
@dataclass(frozen=True)
class SplitCosts(Pass):
    """Take returned sums apart into the terms that they add up.

    A returned ``r0 + r1 + r2`` becomes three costs; each sends its messages to the sites before
    it, which leaves out of a site's message everything that the site cannot influence. For that it cuts the program
    again: what a pass before it has changed of a node is kept, and nodes that one has added are refused.
    """

    name: ClassVar[str] = "split-costs"

    def apply(self, graph: PropagationGraph) -> PropagationGraph:
        assert graph.program is not None
        terms, adders = additive_terms(graph.program)
        _refuse_lost(graph.program, terms)
        _refuse_inner_bounds(graph.program, terms, adders)
        nodes = cut(with_terms(graph.program, terms, adders), aside(graph.program))
        return replace(graph, nodes=nodes | _changes(graph, nodes), cut=None)


def _changes(graph: PropagationGraph, nodes: Mapping[str, Node]) -> dict[str, Node]:
    """Of nodes that are cut anew, those that passes before have changed, with their changes.

    Raises:
        GraphError: a pass has added or removed a node, or changed what is cut in another way now.
    """
    before = graph.nodes if graph.cut is None else graph.cut
    for name in sorted(before.keys() ^ graph.nodes.keys()):
        raise _refused("added" if name in graph.nodes else "removed", graph.nodes.get(name) or before[name])
    touched = (node for name, node in graph.nodes.items() if node is not before[name])
    return {node.name: _changed(before[node.name], node, nodes.get(node.name)) for node in touched}


def _changed(before: Node, now: Node, again: Node | None) -> Node:
    """A node that was cut anew, with what a pass has changed of it."""
    if type(now) is not type(before) or type(again) is not type(before):
        raise _refused("changed", now)
    names = [field.name for field in fields(before) if getattr(before, field.name) is not getattr(now, field.name)]
    if any(getattr(before, name) != getattr(again, name) for name in names):
        raise _refused("changed", now)
    return replace(again, **{name: getattr(now, name) for name in names})


def _refused(verb: str, node: Node) -> GraphError:
    return node.error(
        f"a pass in front of split-costs has {verb} it; split-costs cuts the program again, and would drop that",
        "Let that pass run later: after = 'split-costs' in its class, or pipeline.behind('split-costs', ...).",
        GraphError,
    )


def _refuse_lost(program: Program, terms: Container[torch.fx.Node]) -> None:
    """Refuse a cost with a propagator, or in a plate, that no returned value adds: it would never send."""
    touched = tainted(program)
    for node in program.graph.nodes:
        mark = mark_of(node)
        if mark is not None and in_plates(node) and node in touched and node not in terms:
            raise PropcValueError(
                message(
                    f"it has a value for each element of {' and '.join(map(repr, mark.dims[1:] or mark.dims))}, and is "
                    "no addend of the returned value: it would never send",
                    "Return it, or its sum or mean (loss.sum(1)), added to others as it is.",
                    at=f"cost {mark.name!r}",
                    where=node.meta["where"],
                )
            )
        if mark is not None and mark.kind == "cost" and mark.propagator is not None and node not in terms:
            raise PropcValueError(
                message(
                    f"it has the propagator {mark.propagator.name!r} and is no addend of the returned value: it would "
                    "never send",
                    "Add it to what is returned, or return it by itself.",
                    at=f"cost {mark.name!r}",
                    where=node.meta["where"],
                )
            )


def _refuse_inner_bounds(program: Program, terms: Container[torch.fx.Node], adders: Container[torch.fx.Node]) -> None:
    """Refuse a bound that the returned values are no sums of: what is computed from it would see one log weight."""
    for node in program.graph.nodes:
        mark = mark_of(node)
        if mark is None or mark.kind != "cost" or mark.how == "mean":
            continue
        if node not in terms or any(user not in adders and user.op != "output" for user in node.users):
            raise PropcValueError(
                message(
                    "something is computed from it that is no sum or multiple in the returned value",
                    "Return it with shape [batch], by itself or in a sum, and compute what else you need of it outside "
                    "the compiled function.",
                    at=f"bound {mark.name!r}",
                    where=node.meta["where"],
                )
            )
