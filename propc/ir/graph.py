"""The propagation graph: frozen nodes in program order, routes beside them, and views of both."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar

import torch.fx

from propc.errors import GraphError, PropcValueError, message, nearest
from propc.fx.dependence import Dependence
from propc.fx.operations import is_rough_backward
from propc.fx.program import Program
from propc.ir.adjacency import Wiring
from propc.ir.influence import Influence, find_influence
from propc.ir.messages import Field, field_table
from propc.ir.nodes.cost import Cost
from propc.ir.nodes.leaves import Input, Parameter
from propc.ir.nodes.named import Named
from propc.ir.nodes.node import Node
from propc.ir.nodes.opaque import Opaque
from propc.ir.nodes.output import Output
from propc.ir.nodes.reduce import Reduce
from propc.ir.nodes.segment import Segment
from propc.ir.nodes.site import Site
from propc.ir.records import LOG_MEAN_EXP, Join, Order, Ref, Route
from propc.types import BATCH, Plate, TensorType
from propc.util.torch_rng import random_states, restore_random

if TYPE_CHECKING:
    import networkx as nx

N = TypeVar("N", bound=Node)


@dataclass(frozen=True)
class PropagationGraph:
    """A program as a propagation graph. Passes take one and return a new one.

    Attributes:
        name: the function's name.
        program: the trace that it was cut from; None where it was built by hand.
        nodes: the node records by name, in program order, which is a topological order.
        plates: those of the data, then the others in order of introduction; set by introduce-plates.
        routes: the planned ways of messages, from costs to sites; set by route-messages.
        joins: sums of tokens that costs share; set by fuse.
        schedule: the order of execution; set by schedule.
        cut: the nodes as they were cut from the program, by which split-costs, which cuts again, sees what passes
            before it have changed; None from then on.
    """

    name: str
    program: Program | None = field(repr=False)
    nodes: Mapping[str, Node] = field(repr=False)
    plates: tuple[Plate, ...] = ()
    routes: tuple[Route, ...] = ()
    joins: tuple[Join, ...] = ()
    schedule: Order = field(default_factory=Order)
    cut: Mapping[str, Node] | None = field(default=None, repr=False, compare=False)

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

    def plate(self, name: str) -> Plate:
        """A plate by its name."""
        return next(plate for plate in self.plates if plate.name == name)

    def sizes(self, plates: Iterable[str]) -> tuple[int, ...]:
        """The sizes of plates; `BATCH` has one too."""
        known: dict[str, int] = {plate.name: plate.size for plate in self.plates}
        known[BATCH] = self.batch or 0
        return tuple(known[name] for name in plates)

    def plates_of(self, ref: Ref) -> tuple[str, ...]:
        """The plates that a value carries, the outermost first."""
        return self.nodes[ref.node].plates_of(ref.port, self.plates_of)

    def meeting(self, route: Route) -> tuple[str, ...]:
        """The plates in which the tokens of a route are summed."""
        source, site = self.nodes[route.source], self.nodes[route.targets[0].site]
        return site.plates if isinstance(source, Reduce) and source.how == LOG_MEAN_EXP else source.plates

    def batched(self, site: Site) -> bool:
        """Whether a site has a draw for each sample of the batch."""
        return self.batch is not None and site.spec.rows() == self.batch

    def own(self, node: Node) -> tuple[str, ...]:
        """The leading dimensions of a token of a site, or of a cost, in the program: `BATCH`, plates of the data.

        A site whose rule knows nothing of elements has one token for all; so have all where messages are more than
        cotangents.
        """
        if isinstance(node, Site):
            by_element = node.dims and node.rule is not None and node.rule.by_element and not self.general
            return node.dims if by_element else (BATCH,) if self.batched(node) else ()
        return node.dims or ((BATCH,) if node.shape else ())

    def lead(self, node: Node) -> tuple[str, ...]:
        """The same at run time: behind plates."""
        return (*node.plates, *self.own(node))

    def folds(self, box: Opaque) -> bool:
        """Whether a black box is called once, its plates folded into the batch, in place of once for each element."""
        common = any(self.plate(name).common for name in box.plates)
        return box.how == "batch" or (not box.how and not common and self.can_fold(box))

    def can_fold(self, box: Opaque) -> bool:
        """Whether all that a black box gets and gives in plates has the batch in front."""
        given = [self.nodes[ref.node].outputs[ref.port] for ref in box.inputs if self.plates_of(ref)]
        return self.batch is not None and all(kind.shape[:1] == (self.batch,) for kind in (*given, *box.outputs))

    @cached_property
    def influence(self) -> Influence:
        """Which sites reach which values; derived, hence never stale."""
        return find_influence(self.nodes)

    @cached_property
    def wiring(self) -> Wiring:
        """Who can send messages to whom; derived, hence never stale."""
        return Wiring(self.nodes)

    @property
    def general(self) -> bool:
        """Whether some messages are more than cotangents, so that autograd alone cannot carry them."""
        rules = ((self.nodes[name], self.nodes[name].propagator) for name in self.wiring.vertices)
        return any(isinstance(node, Cost) or (rule is not None and not rule.local) for node, rule in rules)

    @cached_property
    def fields(self) -> dict[str, Field]:
        """The fields that messages may have, as the propagators declare them.

        Raises:
            MessageError: two of them declare one field differently.
        """
        rules = ((name, self.nodes[name].propagator) for name in self.wiring.vertices)
        declared = ((name, (*rule.sends, *rule.keeps)) for name, rule in rules if rule is not None)
        return field_table(declared, {name: self.nodes[name].where for name in self.wiring.vertices})

    @cached_property
    def batch(self) -> int | None:
        """Number of independent samples: the length of the costs; None where all are scalars.

        Raises:
            GraphError: two costs of different lengths.
        """
        sizes: dict[int, Cost] = {}
        for cost in self.costs:
            if cost.shape:
                sizes.setdefault(cost.shape[0], cost)
        if len(sizes) > 1:
            (first, a), (second, b), *_ = sizes.items()
            raise b.error(
                f"its length is {second}, that of cost {a.name!r} is {first}",
                "All costs share one batch dimension.",
                GraphError,
            )
        return next(iter(sizes), None)

    @cached_property
    def nx(self) -> nx.MultiDiGraph[str]:
        """The networkx DAG: nodes carry their record as ``record``; edges have a ``kind``.

        Value edges have kind ``"value"`` and a ``port``, those from an expand node to its site kind
        ``"tangent"``; message edges, which run from costs back to sites, are kept apart in the
        graph's attribute ``routes``, so that it is a DAG.
        """
        import networkx  # here, as it takes as long to import as all of propc, and few ask for this view

        graph: nx.MultiDiGraph[str] = networkx.MultiDiGraph(name=self.name, routes=self.routes)
        for node in self.nodes.values():
            graph.add_node(node.name, record=node, kind=node.called)
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
        return replace(self, nodes={**self.nodes, **{n.name: n for n in changed}}) if changed else self

    def with_estimator(self, site: str, estimator: Any) -> PropagationGraph:
        """A graph in which a site asks for this estimator; for passes before assign-propagators."""
        node = self[site]
        if not isinstance(node, Site):
            raise PropcValueError(message(f"{site!r} is a {node.called}, not a site"))
        return self.with_nodes(replace(node, requested=estimator))

    def without(self, *names: str) -> PropagationGraph:
        """A graph without these nodes."""
        gone = set(names)
        return replace(self, nodes={k: n for k, n in self.nodes.items() if k not in gone})

    def insert_after(self, name: str, fn: Callable[[Any], Any], *, label: str) -> PropagationGraph:
        """Insert a deterministic node: everything that read `name` now reads ``fn`` of it.

        Args:
            name: a node with one output.
            fn: a torch function of that value; it keeps shape and dtype, row by row. It is run once on zeros,
                to see whether a gradient passes it.
            label: name of the new node.

        Raises:
            GraphError: the label is taken, the node has several outputs, or `fn` changes shape or dtype.
        """
        source = self[name]
        if label in self.nodes:
            raise GraphError(message(f"the name {label!r} is taken", "Choose another label."))
        if len(source.outputs) != 1:
            raise GraphError(message(f"node {name!r} has {len(source.outputs)} outputs; insert after one with one"))
        old, new = Ref(name), Ref(f"{label}.in")
        smooth = _passes_gradient(fn, source.outputs[0], label, source)
        made = _applied(fn, source.outputs[0], old, new.node, source, smooth)
        named = Named(name=label, inputs=(new,), outputs=made.outputs, where=source.where)
        nodes: dict[str, Node] = {}
        for key, node in self.nodes.items():
            inputs = tuple(Ref(label) if ref == old else ref for ref in node.inputs)
            nodes[key] = replace(node, inputs=inputs) if inputs != node.inputs else node
            if key == name:
                nodes[made.name], nodes[label] = made, named
        return replace(self, nodes=nodes)

    # -- showing ----------------------------------------------------------------------

    def __str__(self) -> str:
        from propc.printing import to_text

        return to_text(self)

    def __repr__(self) -> str:
        """In a line; `print` shows the whole."""
        parts = {"site": self.sites, "cost": self.costs, "route": self.routes}
        counts = (f"{len(each)} {name}{'' if len(each) == 1 else 's'}" for name, each in parts.items())
        return f"<PropagationGraph {self.name!r}: {', '.join(counts)}>"

    def to_dot(self, *, fold: bool = True, snr: Mapping[str, float] | None = None) -> str:
        """The graph in DOT, the language of Graphviz.

        Args:
            fold: show runs of repeated stages as one box.
            snr: signal-to-noise ratios by site (`propc.signal_to_noise`), to colour the sites by.

        Raises:
            PropcValueError: a ratio of what is no site.
        """
        from propc.printing import ratios, to_dot

        return to_dot(self, fold=fold, paint=ratios(self, snr)).to_string()

    def render(self, path: str, *, fold: bool = True, snr: Mapping[str, float] | None = None) -> str:
        """Draw the graph into a file (SVG, PNG or PDF, by its ending) with Graphviz.

        Args:
            path: of the file.
            fold, snr: as of `to_dot`.

        Raises:
            PropcValueError: Graphviz is not installed, or the ending is unknown; as `to_dot`.
        """
        from propc.printing import ratios, render

        return render(self, path, fold=fold, paint=ratios(self, snr))

    def _repr_svg_(self) -> str | None:
        from propc.printing import svg

        return svg(self)

    def _repr_html_(self) -> str:
        from propc.printing import html

        return html(self)

    def verify(self) -> PropagationGraph:
        """Check every invariant and return the graph.

        Raises:
            GraphError: all violations, a line each.
        """
        from propc.ir.verify import verify

        verify(self)
        return self


def _passes_gradient(fn: Callable[[Any], Any], kind: TensorType, label: str, near: Node) -> bool:
    """Whether a gradient passes `fn`, which is run on zeros and must give what it was given."""
    cards = [kind.device.index] if kind.device.type == "cuda" else []
    states = random_states()
    with torch.inference_mode(False), torch.enable_grad(), torch.random.fork_rng(devices=cards):
        value = torch.zeros(kind.shape, dtype=kind.dtype, device=kind.device)
        if kind.dtype.is_floating_point or kind.dtype.is_complex:
            value.requires_grad_()
        try:
            result = fn(value.clone())  # a copy may be written into
        except Exception as error:
            if hasattr(error, "add_note"):
                error.add_note(f"propc ran the function of node {label!r} once on zeros, {kind}.")
            raise
        finally:
            restore_random(states)
    if not isinstance(result, torch.Tensor) or (result.shape, result.dtype) != (value.shape, value.dtype):
        got = (
            str(TensorType(tuple(result.shape), result.dtype, result.device))
            if isinstance(result, torch.Tensor)
            else type(result).__name__
        )
        raise GraphError(
            message(
                f"its function must keep shape and dtype; of {kind} it makes {got}",
                "Change both only where the program is written.",
                at=f"node {label!r}",
                where=near.where,
            )
        )
    return _follows(result, value)


def _follows(result: torch.Tensor, leaf: torch.Tensor) -> bool:
    """Whether autograd leads from `result` back to `leaf` without a step that jumps."""
    todo, seen = [result.grad_fn], set()
    while todo:
        step = todo.pop()
        if step is None or step in seen or is_rough_backward(step.name()):
            continue
        if getattr(step, "variable", None) is leaf:
            return True
        seen.add(step)
        todo.extend(before for before, _ in step.next_functions)
    return False


def _applied(fn: Callable[[Any], Any], kind: TensorType, source: Ref, name: str, near: Node, smooth: bool) -> Segment:
    """A segment that applies `fn` to one value."""
    graph = torch.fx.Graph()
    argument = graph.placeholder("value")
    result = graph.call_function(fn, (argument,))
    made = replace(kind, requires_grad=kind.requires_grad and smooth)
    argument.meta.update(type=kind, where=near.where, context=None, rough=False)
    result.meta.update(type=made, where=near.where, context=None, rough=not smooth)
    return Segment(
        name=name,
        inputs=(source,),
        outputs=(made,),
        where=near.where,
        body=(result,),
        arguments=(argument,),
        results=(result,),
        dependence=(Dependence(1, 1, 0) if smooth else Dependence(1, 0, 1),),
    )


def leaf_named(graph: PropagationGraph, path: str) -> tuple[Node, ...]:
    """Inputs, parameters (one, or all of a module path) and named nodes that a target means."""
    exact = tuple(n for n in graph if _is_named(n, path))
    if exact:
        return exact
    return tuple(n for n in graph.of(Parameter) if n.path.startswith(f"{path}.") and n.outputs[0].requires_grad)


def _is_named(node: Node, path: str) -> bool:
    if isinstance(node, Parameter):
        return node.path == path and not node.constant
    return (isinstance(node, Input) and node.path == path) or (isinstance(node, Named) and node.name == path)
