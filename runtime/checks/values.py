"""Checks on values at run time: parameters in their support, finite costs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributions import constraints

from propc.distributions.argument_check import PARAMETER_FIX, must_satisfy
from propc.distributions.spec import Relative
from propc.errors import NonFiniteError, message
from propc.ir.graph import PropagationGraph
from propc.ir.nodes.compare_alternatives import CompareAlternatives
from propc.ir.nodes.cost import Cost
from propc.ir.nodes.leaves import Parameter
from propc.ir.nodes.output import Output
from propc.ir.nodes.site import Site
from propc.ir.records import Ref
from propc.types import Source

Bounds = Sequence[tuple[int, constraints.Constraint | Relative]]


@dataclass(slots=True)
class Mode:
    """Whether steps look at the values that they get.

    Attributes:
        validate: whether they do at all.
        checked: whether the first call, in which they look at all of them, is past.
    """

    validate: bool
    checked: bool = False

    @property
    def first(self) -> bool:
        """Whether all values are to be looked at."""
        return self.validate and not self.checked

    @contextmanager
    def unchecked(self) -> Iterator[None]:
        """Look at no values."""
        before = self.validate, self.checked
        self.validate, self.checked = False, True
        try:
            yield
        finally:
            self.validate, self.checked = before


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
    """Find the first site, cost or returned value whose values are invalid, in program order.

    A cost without what has no site in it is a node of its own; that part may be at fault too.
    """
    for node in graph:
        if isinstance(node, Site):
            error = _first_violation(node, [values[ref] for ref in node.inputs], node.spec.checks)
        elif isinstance(node, Cost):
            error = _not_finite(values[node.inputs[0]], f"cost {node.name!r}", node.where)
        elif isinstance(node, Output):
            error = _first_returned(node, [values[ref] for ref in node.inputs])
        else:
            continue
        if error is not None:
            return error
    return None


def _first_returned(node: Output, returned: Sequence[Tensor]) -> NonFiniteError | None:
    for value, path, aside in zip(returned, node.paths, node.guarded):
        if not aside and value.dtype.is_floating_point and value.dim() <= 1:
            error = _not_finite(value, f"the returned value {path}".rstrip(), node.where)
            if error is not None:
                return error
    return None


def _not_finite(value: Tensor, at: str, where: Source) -> NonFiniteError | None:
    finite = torch.isfinite(value)
    if bool(finite.all()):
        return None
    kind = "NaN" if bool(torch.isnan(value).any()) else "infinite"
    return NonFiniteError(
        message(
            f"{int((~finite).sum())} of {value.numel()} values are {kind}",
            "Find the operation that overflows, or compile with validate=False to let such costs through.",
            at=at,
            where=where,
        )
    )


def finite_alternatives(node: CompareAlternatives, site: Site, costs: Tensor) -> None:
    """Check the costs of a site's alternatives.

    Raises:
        NonFiniteError: NaN or infinity among them.
    """
    if math.isfinite(costs.sum().item()) or bool(torch.isfinite(costs).all()):
        return
    bad = int((~torch.isfinite(costs)).sum())
    raise site.error(
        f"{bad} of {costs.numel()} costs of its alternatives are NaN or infinite ({node.name}, {node.where})",
        "Let the cost be finite on every value of the site, or use 'lr' there.",
        NonFiniteError,
    )


def _invalid(site: Site, index: int, constraint: constraints.Constraint, value: Tensor) -> NonFiniteError:
    judge = must_satisfy(f"parameter {site.spec.fields[index]!r} of {site.spec}", lambda _: constraint)
    return site.error(judge(value), PARAMETER_FIX, NonFiniteError)
