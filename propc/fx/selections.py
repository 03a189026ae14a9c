"""Which steps of a program select: their value jumps while what they read moves."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
import torch.fx
from torch import Tensor

from propc.fx.operations import JUMPING, operation_name
from propc.fx.program import mark_of, type_of

_ROUNDED = frozenset({"div", "divide", "true_divide"})  # with rounding_mode=
_SHAPED_ALIKE = ("_like", "new_zeros", "new_ones", "new_full", "new_empty", "new_tensor")


class SpelledOut(NamedTuple):
    """A function that jumps, and moves between jumps, in two steps.

    Attributes:
        selects: from its arguments to what is constant between jumps.
        gives: from that and its arguments to what it gives.
    """

    selects: Callable[..., Any]
    gives: Callable[..., Any]


def _whole(u: Any, y: Any) -> Tensor:
    return torch.floor(torch.as_tensor(u / y))


_REMAINDER = SpelledOut(_whole, lambda q, u, y: u - q * y)
_SPELLED: Mapping[str, SpelledOut] = {
    "remainder": _REMAINDER,
    "mod": _REMAINDER,
    "imod": _REMAINDER,
    "rmod": SpelledOut(lambda y, u: _whole(u, y), lambda q, y, u: u - q * y),
    "fmod": SpelledOut(lambda u, y: torch.trunc(torch.as_tensor(u / y)), lambda q, u, y: u - q * y),
    "frac": SpelledOut(lambda u: u.trunc(), lambda q, u: u - q),
    "threshold": SpelledOut(
        lambda u, threshold, value, inplace=False: u > threshold,
        lambda above, u, threshold, value, inplace=False: torch.where(above, u, value),
    ),
    "hardshrink": SpelledOut(
        lambda u, lambd=0.5: u.abs() > lambd, lambda outside, u, lambd=0.5: torch.where(outside, u, 0.0)
    ),
}


def spelled_out(node: torch.fx.Node) -> SpelledOut | None:
    """The two steps of a function that both jumps and moves; None for any other."""
    return _SPELLED.get(operation_name(node))


def selects(node: torch.fx.Node) -> bool:
    """Whether a step may select: integers and truths made of numbers (a comparison, an index of the largest, of a sort,
    a cast), what rounds, and what `spelled_out` knows.

    Truths made of truths select nothing by themselves, so that each comparison stands for itself.
    """
    if node.op not in ("call_function", "call_method") or mark_of(node) is not None:
        return False
    name, kind = operation_name(node), type_of(node)
    if kind is None or name.endswith(_SHAPED_ALIKE):
        return False
    if kind.dtype.is_floating_point or kind.dtype.is_complex:
        return name in JUMPING or name in _SPELLED or (name in _ROUNDED and bool(node.kwargs.get("rounding_mode")))
    return any(_moves(source) for source in node.all_input_nodes)


def _moves(source: torch.fx.Node) -> bool:
    kind = type_of(source)
    return kind is None or kind.dtype.is_floating_point or kind.dtype.is_complex
