"""Reduce plates: which values carry which plates, and where their weighted mean is taken."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import ClassVar

from propc.errors import EstimatorError, GraphError, PropcWarning, message
from propc.ir.graph import PropagationGraph
from propc.ir.nodes.cost import Cost
from propc.ir.nodes.node import Node
from propc.ir.nodes.output import Output
from propc.ir.nodes.reduce import Reduce
from propc.ir.nodes.site import Site
from propc.ir.records import LOG_MEAN_EXP, Ref
from propc.passes.pipeline import Pass, register
from propc.propagators import EnumerateRule
from propc.types import Plate, PlateKind

# Elements of several plates together that deserve a warning: with 100 rows, 40 MB for each number a row in float32.
WIDE = 100_000
# Joint configurations of enumerated sites that need a budget as large: with 100 rows 400 MB for each number a row in
# float32, and 40 GB at the limit below.
FEW = 1_000_000
# And at most so many that a budget is spoken of.
REACHABLE = 100_000_000


@register("reduce-plates")
@dataclass(frozen=True)
class ReducePlates(Pass):
    """Carry plates along to everything downstream, and insert the `Reduce` nodes that end them.

    A cost is reduced over one plate after the other, the last introduced first; the user sees the weighted
    mean. So is a returned value that is no cost; of one that has no mean, such as a class, the first draw is
    returned. A bound is reduced over all its plates at once.
    """

    name: ClassVar[str] = "reduce-plates"
    needed: ClassVar[bool] = True

    def apply(self, graph: PropagationGraph) -> PropagationGraph:
        if all(plate.kind == PlateKind.DATA for plate in graph.plates):
            return graph
        made = replace(graph, nodes=_PlateSpread(graph).run())
        _refuse_configurations(made)
        _warn_wide(made)
        return made


class _PlateSpread:
    """One walk in program order."""

    def __init__(self, graph: PropagationGraph) -> None:
        self.graph = graph
        self.order = {plate.name: i for i, plate in enumerate(graph.plates)}
        self.plates = {plate.name: plate for plate in graph.plates}
        self.owners = {site.plate: site for site in reversed(graph.sites) if site.plate}
        self.nodes: dict[str, Node] = {}
        self.carried: dict[Ref, tuple[str, ...]] = {}
        self.reduced: dict[Ref, Ref] = {}  # costs, by what stands for them after their last plate

    def run(self) -> dict[str, Node]:
        for node in self.graph:
            node = replace(node, inputs=tuple(self.reduced.get(ref, ref) for ref in node.inputs))
            self.visit(node)
        return self.nodes

    def visit(self, node: Node) -> None:
        plates = self.union(node.inputs)
        if isinstance(node, Output):
            self.output(node)
            return
        if plates and node.mixes_rows:
            raise _refused(node, f"{node.mixes_rows}, and stands inside", plates)
        if plates and node.propagator is not None and not isinstance(node, Site):
            raise _refused(node, "has a propagator of its own, and stands inside", plates)
        made = self.nodes[node.name] = node.carrying(self.union)
        for port, ref in enumerate(made.made or (Ref(node.name),)):
            self.carried[ref] = made.plates_of(port, self.carried.__getitem__)
        if isinstance(node, Cost) and plates:
            if node.how == LOG_MEAN_EXP:
                self.reduced[Ref(node.name)] = self.bound(node)
            else:
                self.reduced[Ref(node.name)] = self.mean(made, Ref(node.name), node.name, of_cost=True)

    def union(self, refs: Iterable[Ref], *own: str) -> tuple[str, ...]:
        """The plates of values together, the outermost first: that which was introduced last."""
        plates = {plate for ref in refs for plate in self.carried[ref]}.union(own)
        return tuple(sorted(plates, key=self.order.__getitem__, reverse=True))

    def mean(self, near: Node, ref: Ref, label: str, *, of_cost: bool) -> Ref:
        """Insert what reduces a value over its plates; the end of it."""
        kind = near.outputs[ref.port] if near.outputs else None
        assert kind is not None
        carried = self.carried[ref]
        for i, name in enumerate(carried):
            plate, site = self.plates[name], self.owners[name]
            how = "mean" if kind.dtype.is_floating_point or kind.dtype.is_complex else "first"
            if how == "first" and plate.weighted:
                raise _no_mean(near, label, plate, site)
            weights = (Ref(site.name, 1),) if plate.weighted and how == "mean" else ()
            made = Reduce(
                name=f"{label}/{name}",
                inputs=(ref, *weights),
                outputs=(kind,),
                where=near.where,
                plates=carried[i + 1 :],
                dims=near.dims if of_cost else (),
                over=(name,),
                how=how,
                of_cost=of_cost,
            )
            self.nodes[made.name] = made
            ref = Ref(made.name)
            self.carried[ref] = made.plates
        return ref

    def bound(self, cost: Cost) -> Ref:
        """Insert what reduces log weights over all plates at once."""
        carried = self.carried[Ref(cost.name)]
        for name in carried:
            if self.plates[name].kind not in (PlateKind.SAMPLES, PlateKind.CONFIGURATIONS):
                raise _no_samples(cost, self.plates[name], self.owners[name])
        weighted = (self.owners[name] for name in carried if self.plates[name].weighted)
        made = Reduce(
            name=f"{cost.name}/{LOG_MEAN_EXP}",
            inputs=(Ref(cost.name), *(Ref(site.name, 1) for site in weighted)),
            outputs=cost.outputs,
            where=cost.where,
            over=carried,
            how=LOG_MEAN_EXP,
        )
        self.nodes[made.name] = made
        self.carried[Ref(made.name)] = ()
        return Ref(made.name)

    def output(self, node: Output) -> None:
        """End what reaches the returned values inside plates."""
        ends: dict[Ref, Ref] = {}
        for i, ref in enumerate(node.inputs):
            if self.carried[ref] and ref not in ends:
                label = f"output{node.paths[i] if i < len(node.paths) else i}"
                ends[ref] = self.mean(self.nodes[ref.node], ref, label, of_cost=False)
        self.nodes[node.name] = replace(node, inputs=tuple(ends.get(ref, ref) for ref in node.inputs))


def _refuse_configurations(graph: PropagationGraph) -> None:
    """Refuse enumerations that multiply to more than can be run.

    Raises:
        EstimatorError: it names the sites, how many configurations there are together and what they take.
    """
    rules = {site.plate: site.rule for site in graph.sites if isinstance(site.rule, EnumerateRule)}

    def together(node: Node) -> int:
        return math.prod(graph.sizes(name for name in node.plates if name in rules))

    widest = max(graph, key=together)
    names = [name for name in reversed(widest.plates) if name in rules]
    count, budgets = together(widest), [rules[name].budget for name in names]
    if len(names) < 2 or count <= max(FEW, *budgets):
        return
    kinds = [kind for kind in widest.outputs if kind.dtype.is_floating_point] or list(widest.outputs)
    size = math.prod(graph.sizes(widest.plates)) * max(math.prod(k.shape) * k.dtype.itemsize for k in kinds)
    sites = ", ".join(map(repr, names[:3])) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    raise widest.error(
        f"it runs on {count:,} joint configurations of {len(names)} enumerated sites ({sites}), and its value takes "
        f"{size / 2**30:,.1f} GiB",
        "Enumerate fewer sites: give the others 'rloo' with samples, or 'local'"
        + (f"; or set budget={count} at one of them, and chunk=." if count <= REACHABLE else "."),
        EstimatorError,
    )


def _warn_wide(graph: PropagationGraph) -> None:
    """Say where plates multiply to very many elements."""
    for node in graph:
        sizes = graph.sizes(node.plates)
        if len(sizes) > 1 and math.prod(sizes) > WIDE:
            product = " × ".join(str(graph.plate(name)) for name in reversed(node.plates))
            warnings.warn(
                message(
                    f"it runs on {math.prod(sizes):,} elements for one row of the batch, {product}: plates that sites "
                    "do not share multiply",
                    "Give some of these sites another estimator, such as 'lr' with samples, or set chunk=.",
                    at=f"{node.called} {node.name!r}",
                    where=node.where,
                ),
                PropcWarning,
                stacklevel=2,
            )
            return


def _refused(node: Node, what: str, plates: tuple[str, ...]) -> EstimatorError:
    return node.error(
        f"it {what} the plate of {', '.join(map(repr, plates))}",
        "Use one sample at the sites before it, or another estimator.",
    )


def _no_mean(near: Node, label: str, plate: Plate, site: Site) -> GraphError:
    return near.error(
        f"the returned value {label.removeprefix('output') or 'of the function'} has no mean over the "
        f"{plate.size} configurations of site {site.name!r}",
        "Return it as floating point (a one-hot vector for a class), or leave it out.",
        GraphError,
    )


def _no_samples(cost: Cost, plate: Plate, site: Site) -> EstimatorError:
    return EstimatorError(
        message(
            f"it weighs independent samples, and stands in the plate of site {site.name!r}, {plate.size} {plate.kind} "
            f"by {site.estimator!r}",
            "Use 'vimco' or 'rp' with samples=, or 'enumerate', at that site.",
            at=f"bound {cost.name!r}",
            where=cost.where,
        )
    )
