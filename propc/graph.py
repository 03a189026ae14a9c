"""The propagation graph: frozen nodes in program order, routes beside them, and views of both."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from types import MappingProxyType
from typing import Any, TypeVar

import networkx as nx
import torch.fx

from propc.errors import GraphError, PropcValueError, message, nearest
from propc.influence import Influence, find_influence
from propc.ir import Cost, Input, Join, Named, Node, Output, Parameter, Ref, Route, Schedule, Segment, Site, TensorType
from propc.tracing.program import Program

N = TypeVar("N", bound=Node)


@dataclass(frozen=True)
class PropagationGraph:
    """A program as a propagation graph. Passes take one and return a new one.

    Attributes:
        name: the function's name.
        program: the trace that it was cut from.
        nodes: the node records by name, in program order, which is a topological order.
        routes: the planned ways of messages, from costs to sites; set by route-messages.
        joins: sums of tokens that costs share; set by fuse.
        schedule: the order of execution; set by schedule.
    """

    name: str
    program: Program = field(repr=False)
    nodes: Mapping[str, Node] = field(repr=False)
    routes: tuple[Route, ...] = ()
    joins: tuple[Join, ...] = ()
    schedule: Schedule = Schedule()

    def __post_init__(self) -> None:
        object.__setattr__(self, "nodes", MappingProxyType(dict(self.nodes)))

    # -- reading ----------------------------------------------------------------------

    def __getitem__(self, name: str) -> Node:
        if name not in self.nodes:
            raise PropcValueError(message(f"the graph has no node {name!r}", nearest(name, self.nodes)))
        return self.nodes[name]

    def __iter__(self) -> Iterator[Node]:
        return iter(self.nodes.values())

    def __len__(self) -> int:
        return len(self.nodes)

    def of(self, kind: type[N]) -> tuple[N, ...]:
        """The nodes of one record type, in program order."""
        return tuple(n for n in self.nodes.values() if isinstance(n, kind))

    @property
    def sites(self) -> tuple[Site, ...]:
        """The sites, in program order."""
        return self.of(Site)

    @property
    def costs(self) -> tuple[Cost, ...]:
        """The costs, in program order."""
        return self.of(Cost)

    @property
    def output(self) -> Output:
        """The output node."""
        node = self.nodes["output"]
        assert isinstance(node, Output)
        return node

    @cached_property
    def influence(self) -> Influence:
        """Which sites reach which values; derived, hence never stale."""
        return find_influence(self.nodes)

    @cached_property
    def batch(self) -> int | None:
        """Number of independent samples: the length of the costs; None where all are scalars.

        Raises:
            GraphError: two costs of different lengths.
        """
        sizes: dict[int, Cost] = {}
        for cost in self.costs:
            if len(cost.shape) == 1:
                sizes.setdefault(cost.shape[0], cost)
        if len(sizes) > 1:
            (first, a), (second, b), *_ = sizes.items()
            raise GraphError(
                message(
                    f"its length is {second}, that of cost {a.name!r} is {first}",
                    "All costs share one batch dimension.",
                    at=f"cost {b.name!r}",
                    where=b.where,
                )
            )
        return next(iter(sizes), None)

    @cached_property
    def nx(self) -> nx.MultiDiGraph:
        """The networkx DAG: nodes carry their record as ``record``; edges have a ``kind``.

        Value edges have kind ``"value"`` and a ``port``, those from an expand node to its site kind
        ``"tangent"``; message edges, which run from costs back to sites, are kept apart in the
        graph's attribute ``routes``, so that it is a DAG.
        """
        graph = nx.MultiDiGraph(name=self.name, routes=self.routes)
        for node in self.nodes.values():
            graph.add_node(node.name, record=node, kind=node.kind.value)
        for node in self.nodes.values():
            for position, ref in enumerate(node.inputs):
                graph.add_edge(ref.node, node.name, kind="value", port=ref.port, position=position)
        for site in self.sites:
            for position, tangent in enumerate(site.tangents):
                if tangent is not None:
                    graph.add_edge(tangent.node, site.name, kind="tangent", port=tangent.port, position=position)
        return graph

    def consumers(self, ref: Ref) -> tuple[str, ...]:
        """Names of the nodes that read a value."""
        return tuple(n.name for n in self.nodes.values() if ref in n.inputs)

    # -- changing ---------------------------------------------------------------------

    def with_nodes(self, *changed: Node) -> PropagationGraph:
        """A graph in which these nodes replace those of the same names."""
        return replace(self, nodes={**self.nodes, **{n.name: n for n in changed}})

    def with_estimator(self, site: str, estimator: Any) -> PropagationGraph:
        """A graph in which a site asks for this estimator; for passes before assign-propagators."""
        node = self[site]
        if not isinstance(node, Site):
            raise PropcValueError(message(f"{site!r} is a {node.kind.value}, not a site"))
        return self.with_nodes(replace(node, requested=estimator))

    def without(self, *names: str) -> PropagationGraph:
        """A graph without these nodes."""
        gone = set(names)
        return replace(self, nodes={k: n for k, n in self.nodes.items() if k not in gone})

    def insert_after(self, name: str, fn: Callable[[Any], Any], *, label: str) -> PropagationGraph:
        """Insert a deterministic node: everything that read `name` now reads ``fn`` of it.

        Args:
            name: a node with one output.
            fn: a torch function of that value; it keeps shape and dtype, row by row.
            label: name of the new node.

        Raises:
            GraphError: the label is taken, or the node has several outputs.
        """
        source = self[name]
        if label in self.nodes:
            raise GraphError(message(f"the name {label!r} is taken", "Choose another label."))
        if len(source.outputs) != 1:
            raise GraphError(message(f"node {name!r} has {len(source.outputs)} outputs; insert after one with one"))
        old, new = Ref(name), Ref(f"{label}.in")
        made = _applied(fn, source.outputs[0], old, new.node, source)
        named = Named(name=label, inputs=(new,), outputs=source.outputs, where=source.where)
        nodes: dict[str, Node] = {}
        for key, node in self.nodes.items():
            inputs = tuple(Ref(label) if ref == old else ref for ref in node.inputs)
            nodes[key] = replace(node, inputs=inputs) if inputs != node.inputs else node
            if key == name:
                nodes[made.name], nodes[label] = made, named
        return replace(self, nodes=nodes)

    # -- showing ----------------------------------------------------------------------

    def __str__(self) -> str:
        from propc.text import to_text

        return to_text(self)

    def to_dot(self, *, fold: bool = True) -> str:
        """The graph in DOT, the language of Graphviz.

        Args:
            fold: show runs of repeated stages as one box.
        """
        from propc.dot import to_dot

        return to_dot(self, fold=fold).to_string()

    def render(self, path: str, *, fold: bool = True) -> str:
        """Draw the graph into a file (SVG, PNG or PDF, by its ending) with Graphviz.

        Raises:
            PropcValueError: Graphviz is not installed, or the ending is unknown.
        """
        from propc.dot import render

        return render(self, path, fold=fold)

    def _repr_svg_(self) -> str | None:
        from propc.dot import svg

        return svg(self)

    def _repr_html_(self) -> str:
        from propc.dot import html

        return html(self)

    def verify(self) -> PropagationGraph:
        """Check every invariant and return the graph.

        Raises:
            GraphError: all violations, a line each.
        """
        from propc.verify import verify

        verify(self)
        return self


def _applied(fn: Callable[[Any], Any], kind: TensorType, source: Ref, name: str, near: Node) -> Segment:
    """A segment that applies `fn` to one value."""
    from propc.ir import Dependence

    graph = torch.fx.Graph()
    argument = graph.placeholder("value")
    result = graph.call_function(fn, (argument,))
    for node in (argument, result):
        node.meta.update(type=kind, where=near.where, context=None, rough=False)
    return Segment(
        name=name,
        inputs=(source,),
        outputs=(kind,),
        where=near.where,
        body=(result,),
        arguments=(argument,),
        results=(result,),
        dependence=(Dependence(1, 1, 0),),
    )


def leaf_named(graph: PropagationGraph, path: str) -> tuple[Node, ...]:
    """Inputs, parameters (one, or all of a module path) and named nodes that a target means."""
    exact = [
        n
        for n in graph
        if (isinstance(n, (Input, Parameter)) and n.path == path) or (isinstance(n, Named) and n.name == path)
    ]
    if exact:
        return tuple(exact)
    return tuple(n for n in graph.of(Parameter) if n.path.startswith(f"{path}.") and n.outputs[0].requires_grad)
