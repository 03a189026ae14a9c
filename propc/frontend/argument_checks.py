"""Checks of torch on the arguments of distributions, which a trace cannot make: they are recorded.

While a program is traced its tensors have no values. `Distribution.__init__` and `_validate_sample` say then which
constraint which tensor must satisfy, if the distribution checks its arguments at all (`validate_args`).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
import torch.fx
from torch import Tensor
from torch.distributions import Distribution, constraints
from torch.distributions.utils import lazy_property

from propc.distributions.argument_check import PARAMETER_FIX, VALUE_FIX, ArgumentCheck, must_satisfy
from propc.distributions.spec import describe, nested, strip
from propc.errors import PropcError, PropcValueError, message
from propc.frontend.user_source import source_of, user_source
from propc.fx.program import CheckedProgram, Leaf
from propc.util.torch_private import (
    BATCH_SHAPE,
    EVENT_SHAPE,
    VALIDATE_ARGS,
    VALIDATE_SAMPLE,
    DisableTorchFunction,
    disable_current_modes,
)


class Checker(Protocol):
    """What checks are handed to."""

    def argument_check(self, check: ArgumentCheck, values: Sequence[Tensor], of: object) -> None:
        """Record that `check` is to be made on `values`; `of` is the distribution whose parameters they are."""


@contextmanager
def recorded_checks(active: Callable[[], Checker | None]) -> Iterator[None]:
    """Let distributions hand their checks to `active()`, where that is not None, instead of making them."""
    make, look = Distribution.__init__, getattr(Distribution, VALIDATE_SAMPLE)

    def init(
        self: Distribution,
        batch_shape: torch.Size = torch.Size(),  # noqa: B008, as torch has it
        event_shape: torch.Size = torch.Size(),  # noqa: B008
        validate_args: bool | None = None,
    ) -> None:
        checker = active()
        if checker is None:
            return make(self, batch_shape, event_shape, validate_args)
        make(self, batch_shape, event_shape, False)
        del vars(self)[VALIDATE_ARGS]
        if validate_args is not None:
            setattr(self, VALIDATE_ARGS, validate_args)
        if getattr(self, VALIDATE_ARGS):
            _parameters(self, checker)

    def validate_sample(self: Distribution, value: Any) -> None:
        checker = active()
        if checker is None:
            look(self, value)
            return
        _sample(self, value, look, checker)

    Distribution.__init__ = init  # type: ignore[method-assign]
    setattr(Distribution, VALIDATE_SAMPLE, validate_sample)
    try:
        yield
    finally:
        Distribution.__init__ = make  # type: ignore[method-assign]
        setattr(Distribution, VALIDATE_SAMPLE, look)


def _parameters(dist: Distribution, checker: Checker) -> None:
    """Record the constraints of a distribution's parameters."""
    try:
        known = dist.arg_constraints
    except NotImplementedError:
        return
    for name, constraint in known.items():
        lazy = name not in vars(dist) and isinstance(getattr(type(dist), name, None), lazy_property)
        if lazy or constraints.is_dependent(constraint):
            continue
        value = getattr(dist, name)
        if isinstance(value, Tensor):
            what = f"parameter {name!r} of {describe(dist)}"
            check, values = _check(what, value, constraint, PARAMETER_FIX)
            checker.argument_check(check, values, dist)


def _sample(dist: Distribution, value: Any, look: Callable[[Any, Any], None], checker: Checker) -> None:
    """Check the shape of a value at once, and record that it must be in the support."""
    called = sys._getframe(2).f_code.co_name  # log_prob, cdf, icdf
    what = f"the value given to {called}() of {describe(dist)}"
    try:
        with DisableTorchFunction(), disable_current_modes():
            look(_Shapes(getattr(dist, BATCH_SHAPE), getattr(dist, EVENT_SHAPE)), value)
    except ValueError as error:
        raise PropcValueError(message(f"{what} does not fit: {str(error).rstrip('.')}", where=user_source())) from None
    try:
        support = dist.support
    except NotImplementedError:
        return
    if support is not None and not constraints.is_dependent(support):
        check, values = _check(what, value, support, VALUE_FIX)
        checker.argument_check(check, values, None)


def _check(what: str, value: Tensor, constraint: Any, fix: str) -> tuple[ArgumentCheck, tuple[Tensor, ...]]:
    held, _, build = strip(constraint)
    by_element = constraint.event_dim < 2
    return ArgumentCheck(must_satisfy(what, build), fix, user_source(), by_element=by_element), (value, *held)


class _Anything(constraints.Constraint):
    """All values are valid."""

    def check(self, value: Tensor) -> Tensor:
        return torch.ones((), dtype=torch.bool)


@dataclass
class _Shapes:
    """All that torch's check of a value asks of a distribution, whose support is left out."""

    _batch_shape: torch.Size
    _event_shape: torch.Size
    support: constraints.Constraint = _Anything()  # noqa: RUF009, it has no state


def not_constructed(error: Exception) -> PropcValueError | None:
    """The error for arguments that a distribution's constructor refuses; None for an error from elsewhere."""
    trace = error.__traceback__
    while trace is not None and not isinstance(error, PropcError):
        frame, trace = trace.tb_frame, trace.tb_next
        made = frame.f_locals.get("self")
        if frame.f_code.co_name == "__init__" and isinstance(made, Distribution):
            finding = f"{type(made).__name__} cannot be made of these arguments: {str(error).rstrip('.')}"
            return PropcValueError(message(finding, where=source_of(error)))
    return None


Checks = list[tuple[torch.fx.Node, object]]


def at_site(checks: Checks, dist: Distribution, name: str) -> Checks:
    """Let a site take over the checks of its distribution; gives those that are left.

    Those by element it makes by itself, at every call; a constructor factorizes matrices before the site.
    """
    laws = {id(law) for law in nested(dist)}
    left: Checks = []
    for node, of in checks:
        check: Any = node.target
        if id(of) in laws and check.by_element:
            node.graph.erase_node(node)
            continue
        if id(of) in laws:
            node.target = replace(check, at=f"site {name!r}", where=user_source())
        left.append((node, of))
    return left


def taken_out(graph: torch.fx.Graph, leaves: Sequence[Leaf], checks: Sequence[torch.fx.Node]) -> CheckedProgram | None:
    """Take checks out of a trace, which goes on without them.

    Returns:
        a copy of what they need, with them in it; None where there are none.
    """
    if not checks:
        return None
    needed = {*checks, *(leaf.node for leaf in leaves)}
    for node in reversed(graph.nodes):
        if node in needed or node.meta.get("writes"):
            needed.update((node, *node.all_input_nodes))
    copy, twins = torch.fx.Graph(), dict[torch.fx.Node, torch.fx.Node]()
    for node in graph.nodes:
        if node in needed:
            twins[node] = copy.node_copy(node, lambda n: twins[n])
    for node in reversed(checks):
        graph.erase_node(node)
    return CheckedProgram(copy, tuple((leaf, twins[leaf.node]) for leaf in leaves))
