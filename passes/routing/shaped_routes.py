"""Routes of shaped messages: from a resample node to the sites before it, in place of the costs behind it."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

from propc.errors import EstimatorError, PropcWarning, message
from propc.ir.graph import PropagationGraph
from propc.ir.nodes.cost import Cost
from propc.ir.nodes.node import Node
from propc.ir.nodes.resample import Resample
from propc.ir.nodes.site import Site
from propc.ir.records import Route, Token
from propc.propagators.baselines import WEIGHT


def shaped_routes(graph: PropagationGraph) -> list[Route]:
    """One route for each resample node with sites before it that take messages.

    A shaped message has mean zero over the batch: it needs no baseline.

    Raises:
        EstimatorError: a site takes messages and is none of the node's `sites`, or the costs behind the node
            cannot be differentiated in what it draws.
    """
    nodes = graph.of(Resample)
    if nodes:
        _require_paths(graph)
    return [route for node in nodes for route in _routes(graph, node)]


def _routes(graph: PropagationGraph, node: Resample) -> Iterator[Route]:
    targets: list[Token] = []
    for site in graph.sites:
        if site.rule is None or not site.rule.baselines or not _is_before(graph, site, node):
            continue
        if node.sites and site.name not in node.sites:
            raise _unlisted(node, site)
        if WEIGHT in site.rule.baselines:
            raise _weighed(node, site)
        targets += [Token(site.name, index) for index in range(len(site.rule.baselines))]
    if targets:
        yield Route(node.name, tuple(targets), None, ("shaped",), "shaped")


def _is_before(graph: PropagationGraph, site: Site, node: Resample) -> bool:
    influence = graph.influence
    return bool(influence.phi[node.name].any >> influence.index[site.name] & 1)


def _require_paths(graph: PropagationGraph) -> None:
    """Check that autograd leads from what is behind resample nodes to what they draw, as shaping needs."""
    influence = graph.influence
    nodes = sum(1 << influence.index[node.name] for node in graph.of(Resample))
    takers = [(1 << influence.index[s.name], influence.phi[s.name].smooth) for s in graph.sites if _takes(s)]
    for receiver in (*graph.of(Cost), *graph.of(Resample)):
        reach = influence.at(receiver)
        jumps = (reach.any & ~reach.smooth | reach.rough) & nodes
        if jumps:  # what lies before a site that takes messages gets its derivative by the site's φ
            for bit, before in takers:
                jumps &= ~before if reach.any & bit else ~0
        for name in influence.named(jumps & ~reach.smooth):
            raise _blocked(graph[name], receiver)
        for name in influence.named(jumps):
            _warn_rough(graph[name], receiver)


def _takes(site: Site) -> bool:
    return site.rule is not None and bool(site.rule.baselines)


def _blocked(node: Node, receiver: Node) -> EstimatorError:
    return EstimatorError(
        message(
            f"shaping needs the derivative of every cost behind it; no differentiable path leads to {receiver.name!r}",
            "Use 'lr' there, or remove the detach, comparison, rounding or black box on the way.",
            at=f"resample node {node.name!r}",
            where=node.where,
        )
    )


def _warn_rough(node: Node, receiver: Node) -> None:
    warnings.warn(
        message(
            f"it also reaches {receiver.name!r} through a comparison, rounding or an integer, of which shaping "
            "knows nothing",
            "Use 'lr' if that step matters for the cost.",
            at=f"resample node {node.name!r}",
            where=node.where,
        ),
        PropcWarning,
        stacklevel=2,
    )


def _weighed(node: Resample, site: Site) -> EstimatorError:
    return EstimatorError(
        message(
            f"its estimator {site.estimator!r} takes the weights of costs, and resample node {node.name!r} sends "
            "shaped messages in their place, which have none",
            "Use 'gs' or 'lr' here, or refit values that do not depend on this site.",
            at=f"site {site.name!r}",
            where=site.where,
        )
    )


def _unlisted(node: Resample, site: Site) -> EstimatorError:
    listed = ", ".join(map(repr, node.sites))
    return EstimatorError(
        message(
            f"its estimator {site.estimator!r} takes messages, those of the costs behind resample node "
            f"{node.name!r} are shaped, and the node sends them to {listed} only",
            f"Let it take part, by estimator='gs' here or sites= with {site.name!r}; or use 'rp', or refit other "
            "values with at=.",
            at=f"site {site.name!r}",
            where=site.where,
        )
    )
