"""Gaussian shaping: refit a Gaussian to chosen values, and let what is behind them see draws of it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from propc.errors import EstimatorError, PropcValueError, message, nearest
from propc.ir.graph import PropagationGraph
from propc.ir.nodes.named import Named
from propc.ir.nodes.node import Node
from propc.ir.nodes.resample import JITTER, Resample
from propc.ir.nodes.segment import Segment
from propc.ir.nodes.site import Site
from propc.ir.records import Ref
from propc.ir.rewiring import Rewiring
from propc.passes.pipeline import Pass, register
from propc.propagators.nodes.gaussian_fit import check_refit
from propc.util.patterns import matches


@register("gaussian-shaping")
@dataclass(frozen=True, kw_only=True)
class GaussianShaping(Pass):
    """Insert resample nodes: the costs behind read x′ ~ N(μ, Σ), μ and Σ of the batch of x.

    Sites before a node get its shaped messages instead of the costs behind it; cotangents go back
    through μ and Σ. Costs that a site reaches round the node are sent to it as they are.

    Requires: rows that are samples of one law, and more of them than dimensions (or `shrinkage`); a
    differentiable path from x′ to every cost behind it.

    Args:
        at: where: the name of a site or `propc.node`; a pattern, for a node at each value that matches; or a
            sequence of names, whose values are fitted jointly. By default, for each cost, the sites that reach
            it without another site between, jointly.
        sites: patterns of the sites that may take shaped messages; all before the node by default.
        costs: patterns of the costs that see x′, while everything else goes on with x; by default all that is
            behind sees x′.
        shrinkage: s in (0, 1]: Σ becomes (1 − s)·Σ + s·tr(Σ)/D·I.
        jitter: is added to the variances.
    """

    name: ClassVar[str] = "gaussian-shaping"
    at: str | Sequence[str] | None = None
    sites: str | Sequence[str] | None = None
    costs: str | Sequence[str] | None = None
    shrinkage: float | None = None
    jitter: float = JITTER

    def __post_init__(self) -> None:
        check_refit(self.shrinkage, self.jitter, at=self.at, sites=self.sites, costs=self.costs)

    def apply(self, graph: PropagationGraph) -> PropagationGraph:
        costs = None if self.costs is None else _matching(_patterns(self.costs), graph.costs, "costs", graph)
        if self.at is None:
            places = self._frontiers(graph, costs or [c.name for c in graph.costs])
        elif isinstance(self.at, str):
            places = {(name,): costs for name in _matching([self.at], _values(graph), "at", graph)}
        else:
            places = {tuple(name for at in self.at for name in _matching([at], _values(graph), "at", graph)): costs}
        sites = [] if self.sites is None or not places else self._sites(graph, places)
        wiring = Rewiring(graph)
        for names, ends in places.items():
            self._insert(wiring, list(dict.fromkeys(names)), sites, ends)
        return wiring.graph()

    def _frontiers(self, graph: PropagationGraph, costs: Iterable[str]) -> dict[tuple[str, ...], list[str] | None]:
        """For each set of sites that reach costs without another site between, these costs."""
        wanted = None if self.sites is None else _patterns(self.sites)
        found: dict[tuple[str, ...], list[str] | None] = {}
        for name in costs:
            reach = graph.influence.values[graph[name].inputs[0]]
            heard = wanted is None or any(_fits(site, wanted) for site in graph.influence.named(reach.any))
            names = _frontier(graph, graph[name]) if heard else ()
            if names:
                found.setdefault(names, []).append(name)  # type: ignore[union-attr]
        return found

    def _sites(self, graph: PropagationGraph, places: Iterable[Sequence[str]]) -> list[str]:
        """The sites that may take messages."""
        sites = _matching(_patterns(self.sites or ()), graph.sites, "sites", graph)
        before = {site for names in places for name in names for site in graph.influence.upstream(Ref(name))}
        if before.isdisjoint(sites):
            raise PropcValueError(
                message(
                    f"sites={self.sites!r} of gaussian-shaping: none of them lies before the refitted values",
                    nearest(sites[0], before),
                    where=graph.output.where,
                )
            )
        return sites

    def _insert(self, wiring: Rewiring, names: Sequence[str], sites: Sequence[str], ends: list[str] | None) -> None:
        """Insert one resample node."""
        graph = wiring.old
        last = graph[max(names, key=wiring.places.__getitem__)]
        node = Resample(
            name=wiring.free(f"{last.name}.resample"),
            inputs=tuple(Ref(name) for name in names),
            outputs=tuple(graph[name].outputs[0] for name in names),
            where=last.where,
            sites=tuple(sites),
            shrinkage=float(self.shrinkage or 0.0),
            jitter=float(self.jitter),
        )
        _check(graph, node)
        if not wiring.insert(node, ends):
            raise last.error(
                "nothing that is returned depends on it" if ends is None else f"no cost of {ends} depends on it",
                "Refit values that lead to costs.",
                PropcValueError,
            )


def _frontier(graph: PropagationGraph, cost: Node) -> tuple[str, ...]:
    """The sites that reach a cost without another site between, in program order."""
    found: set[str] = set()
    seen: set[Ref] = set()
    pending = list(cost.inputs)
    while pending:
        ref = pending.pop()
        if ref in seen:
            continue
        seen.add(ref)
        node = graph[ref.node]
        if isinstance(node, (Site, Resample)):
            found.add(node.name)
        elif isinstance(node, Segment):
            pending += [r for i, r in enumerate(node.inputs) if node.dependence[ref.port].any >> i & 1]
        else:
            pending += node.inputs
    return tuple(sorted(found.intersection(graph.influence.sites), key=graph.influence.index.__getitem__))


def _check(graph: PropagationGraph, node: Resample) -> None:
    """Check that the values have rows, of floating point numbers, and enough of them."""
    batch = graph.batch if graph.batch is not None else (node.shape or (0,))[0]
    first = node.outputs[0]
    for ref, kind in zip(node.inputs, node.outputs):
        like = (kind.dtype, kind.device) == (first.dtype, first.device)
        if not like or not kind.dtype.is_floating_point or kind.shape[:1] != (batch,):
            raise _refused(
                graph[ref.node],
                f"a Gaussian is fitted to floating point values of one type, a row for each of the {batch} samples; "
                f"this one is {kind}",
                "Refit other values with at=, such as a propc.node that is computed from this one.",
            )
    if batch <= node.width and not node.shrinkage:
        raise _refused(
            graph[node.inputs[-1].node],
            f"{batch} rows cannot give a covariance of {node.width} dimensions",
            f"Use more than {node.width} rows, set shrinkage=0.1 or more, or refit fewer values with at=.",
        )
    if batch < 2:
        raise _refused(graph[node.inputs[-1].node], "one row has no covariance", "Use two rows or more.")


def _refused(source: Node, finding: str, fix: str) -> EstimatorError:
    return source.error(finding, fix)


def _values(graph: PropagationGraph) -> tuple[Node, ...]:
    """What can be refitted by name."""
    return tuple(node for node in graph if isinstance(node, (Site, Named)))


def _matching(patterns: Sequence[str], known: Sequence[Node], option: str, graph: PropagationGraph) -> list[str]:
    """The names that match a pattern, in program order.

    Raises:
        PropcValueError: a pattern without a match, with the nearest name.
    """
    names = [node.name for node in known]
    for pattern in patterns:
        if not any(_fits(name, [pattern]) for name in names):
            kinds = {"at": "site or propc.node", "sites": "site", "costs": "cost"}[option]
            raise PropcValueError(
                message(
                    f"{option}={pattern!r} of gaussian-shaping matches no {kinds} of {graph.name!r}",
                    nearest(pattern, names),
                    where=graph.output.where,
                )
            )
    return [name for name in names if _fits(name, patterns)]


def _fits(name: str, patterns: Iterable[str]) -> bool:
    return any(matches(name, pattern) for pattern in patterns)


def _patterns(names: str | Sequence[str]) -> list[str]:
    return [names] if isinstance(names, str) else list(names)
