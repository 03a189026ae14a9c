"""Checks on values at run time: parameters in their support, finite costs, independent rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import networkx as nx
import torch
from torch import Tensor
from torch.distributions import constraints

from propc.distributions import Relative
from propc.errors import GraphError, NonFiniteError, message
from propc.graph import PropagationGraph
from propc.ir import Compare, Cost, Node, Opaque, Parameter, Ref, Resample, Site

Bounds = Sequence[tuple[int, constraints.Constraint | Relative]]


def bounds(site: Site, graph: PropagationGraph) -> Bounds:
    """The constraints of a site's parameters that must be checked at every call.

    Not those of constants, which are checked once, and not that of being real: NaN shows in
    the costs.
    """
    return [
        (i, constraint)
        for i, constraint in site.spec.checks
        if not all(_constant(site, j, graph) for j in (i, *_bounding(constraint)))
        and getattr(constraint, "base_constraint", constraint) is not constraints.real
    ]


def site_check(site: Site, phi: Sequence[Tensor], wanted: Bounds) -> None:
    """Check the parameters of a site.

    Raises:
        NonFiniteError: names the site, the parameter and what was found.
    """
    error = _first_violation(site, phi, wanted)
    if error is not None:
        raise error


def _first_violation(site: Site, phi: Sequence[Tensor], wanted: Bounds) -> NonFiniteError | None:
    for index, known in wanted:
        constraint = known.at(phi) if isinstance(known, Relative) else known
        if not bool(constraint.check(phi[index]).all()):
            return _invalid(site, index, constraint, phi[index])
    return None


def _constant(site: Site, index: int, graph: PropagationGraph) -> bool:
    source = graph[site.inputs[index].node]
    return isinstance(source, Parameter) and source.constant


def _bounding(constraint: constraints.Constraint | Relative) -> list[int]:
    return [index for _, index in constraint.bounds] if isinstance(constraint, Relative) else []


def explain_failure(graph: PropagationGraph, values: Mapping[Ref, Any]) -> NonFiniteError | None:
    """Find the first site or cost whose values are invalid, in program order."""
    for node in graph:
        if isinstance(node, Site):
            error = _first_violation(node, [values[ref] for ref in node.inputs], node.spec.checks)
            if error is not None:
                return error
        elif isinstance(node, Cost):
            value = values[node.inputs[0]]
            if not bool(torch.isfinite(value).all()):
                bad = int((~torch.isfinite(value)).sum())
                kind = "NaN" if bool(torch.isnan(value).any()) else "infinite"
                return NonFiniteError(
                    message(
                        f"{bad} of {value.numel()} values are {kind}",
                        "Find the operation that overflows, or compile with validate=False to let such costs through.",
                        at=f"cost {node.name!r}",
                        where=node.where,
                    )
                )
    return None


def finite_alternatives(node: Compare, site: Site, costs: Tensor) -> None:
    """Check the costs of a site's alternatives.

    Raises:
        NonFiniteError: NaN or infinity among them.
    """
    if math.isfinite(costs.sum().item()) or bool(torch.isfinite(costs).all()):
        return
    bad = int((~torch.isfinite(costs)).sum())
    raise NonFiniteError(
        message(
            f"{bad} of {costs.numel()} costs of its alternatives are NaN or infinite ({node.name}, {node.where})",
            "Let the cost be finite on every value of the site, or use 'lr' there.",
            at=f"site {site.name!r}",
            where=site.where,
        )
    )


def check_rows(
    graph: PropagationGraph, replay: Callable[[Mapping[Ref, Tensor]], Mapping[Ref, Any]], draws: Mapping[Ref, Tensor]
) -> None:
    """Check that rows of the batch do not mix: change one row of every draw, and see which others move.

    Args:
        replay: runs the program on given draws and gives all values.
        draws: those of the first call.

    Raises:
        GraphError: names the site or cost where samples have mixed, and the user's line.
    """
    batch = graph.batch
    if batch is None or batch < 2:
        return
    before = replay(draws)
    lead = {ref: len(graph.plates_of(ref)) for node in graph for ref in node.made}
    after = replay({ref: _with_other_row(value, batch, lead[ref]) for ref, value in draws.items()})

    def apart(refs: Iterable[Ref]) -> bool:
        return all(_same_rows(before[ref], after[ref], batch, lead[ref]) for ref in refs)

    boxes = [box for box in graph.of(Opaque) if apart(box.inputs) and not apart(box.made)]
    for node in graph:
        if isinstance(node, (Site, Resample, Cost)) and not node.copy_of and not apart(node.inputs):
            raise _mixed(node, next((box for box in boxes if nx.has_path(graph.nx, box.name, node.name)), None))


def _mixed(node: Node, box: Opaque | None) -> GraphError:
    """Samples of the batch have mixed on the way to a node, perhaps in a black box."""
    what = "an operation before it" if box is None else f"black box {box.name!r} ({box.where}) before it"
    fix = (
        "Keep every operation between sites and costs within its row (no batch normalization, batch mean or sort "
        "over dimension 0), or use estimator='rp'."
        if box is None
        else "Let row i of its results depend on row i of its arguments alone."
    )
    return GraphError(
        message(
            f"{what} mixes samples of the batch: changing one sample of a draw changes other rows, or a value that "
            "all rows share",
            fix,
            at=f"{node.kind.value} {node.name!r}",
            where=node.where,
        )
    )


def _with_other_row(value: Tensor, batch: int, lead: int) -> Tensor:
    """The draw with row 0 replaced by a different row, which is a possible draw too; rows come after `lead` plates."""
    value = value.detach()
    if value.dim() <= lead or value.shape[lead] != batch:
        return value
    rows = value.movedim(lead, 0)
    differs = (rows != rows[:1]).flatten(1).any(1) if rows.dim() > 1 else rows != rows[0]
    other = int(differs.to(torch.uint8).argmax())
    changed = value.clone()
    changed.select(lead, 0).copy_(value.select(lead, other))
    return changed


def _same_rows(before: Any, after: Any, batch: int, lead: int) -> bool:
    if not isinstance(before, Tensor):
        return True
    before, after = before.detach(), after.detach()
    if before.dim() > lead and before.shape[lead] == batch:
        before, after = before.narrow(lead, 1, batch - 1), after.narrow(lead, 1, batch - 1)
    if not before.dtype.is_floating_point:
        return bool(torch.equal(before, after))
    return bool(torch.allclose(before, after, rtol=1e-4, atol=1e-6, equal_nan=True))


def _invalid(site: Site, index: int, constraint: constraints.Constraint, value: Tensor) -> NonFiniteError:
    valid = constraint.check(value)
    bad = value.detach()[~valid].flatten()
    return NonFiniteError(
        message(
            f"parameter {site.spec.fields[index]!r} of {site.spec} must satisfy {constraint}; {int((~valid).sum())} of "
            f"{valid.numel()} do not, such as {bad[0].item():g}",
            "Constrain it (softplus, exp, sigmoid, softmax), or look for NaN before it.",
            at=f"site {site.name!r}",
            where=site.where,
        )
    )
