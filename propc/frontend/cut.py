"""Cutting a traced program at its marks and cost terms into the nodes of a propagation graph.

Segments are the stretches of program order between marks, so that random draws,
writes and reads happen in the order in which the user wrote them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch.fx

from propc.fx.dependence import dependence
from propc.fx.program import Leaf, Mark, Program, mark_of, type_of
from propc.ir.nodes.cost import Cost
from propc.ir.nodes.leaves import Input, Parameter
from propc.ir.nodes.named import Named
from propc.ir.nodes.node import Node
from propc.ir.nodes.opaque import Opaque
from propc.ir.nodes.output import Output
from propc.ir.nodes.segment import Segment
from propc.ir.nodes.site import Site
from propc.ir.records import Ref
from propc.types import TensorType, Turn


def cut(program: Program, aside: Iterable[int] = ()) -> dict[str, Node]:
    """Cut `program` into nodes, in program order.

    Args:
        program: a trace whose costs are marked (`propc.frontend.cost_terms.with_terms`).
        aside: positions of the returned values that depend on sites and are no costs.
    """
    return _Cutter(program, frozenset(aside)).run()


class _Cutter:
    def __init__(self, program: Program, aside: frozenset[int]) -> None:
        self.program, self.aside = program, aside
        self.nodes: dict[str, Node] = {}
        self.refs: dict[torch.fx.Node, Ref] = {}
        self.pending: list[torch.fx.Node] = []
        self.turn: Turn | None = None

    def run(self) -> dict[str, Node]:
        for leaf in self.program.leaves:
            made = self.leaf(leaf)
            self.nodes[made.name] = made
            self.refs[leaf.node] = Ref(made.name)
        for node in self.program.graph.nodes:
            mark = mark_of(node)
            if node.op in ("placeholder", "output") or node in self.refs:
                continue
            if mark is None:
                self.pending.append(node)
            elif mark.kind == "turn":
                self.close(mark.name)
                self.turn = mark.turn
            else:
                self.close(mark.name)
                self.marked(node, mark)
        self.close("output")
        self.output()
        return self.nodes

    def leaf(self, leaf: Leaf) -> Node:
        """An argument, or a tensor that the program holds."""
        if leaf.fetch is None:
            return Input(
                name=self.unique(f"input.{leaf.path}"), outputs=(leaf.type,), where=self.program.where, path=leaf.path
            )
        prefix = "const" if leaf.constant else "held"
        return Parameter(
            name=self.unique(f"{prefix}.{leaf.path}"),
            outputs=(leaf.type,),
            path=leaf.path,
            where=leaf.node.meta["where"],
            constant=leaf.constant,
        )

    def close(self, anchor: str) -> None:
        """Make the pending torch.fx nodes a segment, named after what it feeds."""
        body, self.pending = self.pending, []
        if not body:
            return
        inside = set(body)
        arguments = tuple(dict.fromkeys(s for n in body for s in n.all_input_nodes if s not in inside))
        results = tuple(n for n in body if any(u not in inside for u in n.users))
        name = self.unique(f"{anchor}.in")
        self.nodes[name] = Segment(
            name=name,
            inputs=tuple(self.refs[n] for n in arguments),
            outputs=tuple(type_of(n) or _NO_TENSOR for n in results),
            where=body[-1].meta["where"],
            body=tuple(body),
            arguments=arguments,
            results=results,
            dependence=dependence(body, arguments, results),
            turn=self.turn,
        )
        for port, node in enumerate(results):
            self.refs[node] = Ref(name, port)

    def marked(self, node: torch.fx.Node, mark: Mark) -> None:
        common: dict[str, Any] = {
            "name": self.unique(mark.name),
            "where": node.meta["where"],
            "inputs": tuple(self.refs[n] for n in node.all_input_nodes),
            "turn": self.turn,
        }
        made: Node
        if mark.kind == "opaque":
            arguments = tuple(node.all_input_nodes)
            made = Opaque(
                **common, outputs=node.meta["types"], call=node, arguments=arguments, how=mark.how, cuts=mark.cuts
            )
            if type_of(node) is None:  # a tuple: its items are the ports
                for item in node.users:
                    port = item.args[1]
                    assert isinstance(port, int)
                    self.refs[item] = Ref(made.name, port)
        else:
            kind = type_of(node)
            assert kind is not None
            # one entry for each φ, also where two are the same value
            common["inputs"] = tuple(self.refs[n] for n in node.args if isinstance(n, torch.fx.Node))
            common["outputs"] = (kind,)
            common["dims"] = mark.dims
            made = _MADE[mark.kind](common, mark)
        self.nodes[made.name] = made
        self.refs[node] = Ref(made.name)

    def output(self) -> None:
        """The returned values."""
        program = self.program
        returned = program.outputs
        kinds = [type_of(v) for v in returned]
        self.nodes["output"] = Output(
            name="output",
            inputs=tuple(self.refs[v] for v in returned),
            outputs=tuple(k or _NO_TENSOR for k in kinds),
            where=program.where,
            guarded=tuple(i in self.aside for i in range(len(returned))),
            paths=program.paths,
        )

    def unique(self, name: str) -> str:
        if name not in self.nodes:
            return name
        return next(f"{name}#{i}" for i in range(2, len(self.nodes) + 3) if f"{name}#{i}" not in self.nodes)


def _site(common: dict[str, Any], mark: Mark) -> Site:
    assert mark.spec is not None
    return Site(**common, spec=mark.spec, requested=mark.estimator)


_MADE = {
    "site": _site,
    "node": lambda common, mark: Named(**common, rule=mark.propagator),
    "term": lambda common, mark: Cost(**common, path=mark.name, rule=mark.propagator, how=mark.how or "mean"),
}
_NO_TENSOR = TensorType((), torch.uint8, torch.device("cpu"))  # a port that carries a tuple; nobody looks at it
