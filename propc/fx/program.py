"""What a trace gives: a torch.fx graph whose placeholders are leaves and whose marks are sites."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch.fx
from torch import Tensor

from propc.distributions.spec import DistributionSpec
from propc.types import Plate, Source, TensorType, Turn


@dataclass(frozen=True)
class Leaf:
    """A placeholder: a tensor argument (`fetch` is None) or a tensor that the program holds.

    `fetch` takes the compiled module (or None) and gives the tensor as it is now; of a `constant`
    it gives the same at every call.
    """

    path: str
    node: torch.fx.Node
    type: TensorType
    fetch: Callable[[Any], Tensor] | None = None
    constant: bool = False


@dataclass(frozen=True)
class Mark:
    """What the user marked: a site (with `spec` and `estimator`), a node or a cost (perhaps with a
    `propagator`; `how` as of `Cost`), or a black box (with `how` it is called in plates, and whether it `cuts`
    gradients by the user's word). `dims` are the names of leading dimensions in the plates that are open there. A mark
    of kind ``turn`` has no value: what is behind it, up to the next, belongs to step `turn` of a scan, or, with None,
    to none."""

    kind: str
    name: str
    spec: DistributionSpec | None = None
    estimator: Any = None
    propagator: Any = None
    how: str = ""
    cuts: bool = False
    dims: tuple[str, ...] = ()
    turn: Turn | None = None


@dataclass(frozen=True)
class CheckedProgram:
    """Those operations of a trace that checks of torch on arguments need, and the checks, in program order.

    Attributes:
        graph: its checks are calls of an `ArgumentCheck`; `meta` is that of the trace.
        leaves: with the placeholder of each here.
    """

    graph: torch.fx.Graph
    leaves: tuple[tuple[Leaf, torch.fx.Node], ...]


@dataclass(frozen=True)
class Program:
    """A traced call.

    Attributes:
        name: the function's name.
        graph: torch.fx nodes in program order; `meta` of each holds ``type``
            (a `TensorType`, or None for a tuple), ``where`` (a `Source`), and ``mark``.
        leaves: the placeholders, in order.
        outputs: the returned tensors, flattened.
        paths: place of each returned tensor, such as ``['loss']``; empty for a single one.
        inner: positions of those that are inside a returned object, such as a distribution.
        assemble: makes the returned value from the returned tensors.
        mutates: whether an operation writes into an existing tensor.
        where: the function's own file and line.
        plates: those that the user has declared.
        returned_memory: identity of the memory behind the returned tensors, as in ``meta["memory"]``.
        checked: what torch would have checked; None where that is nothing.
    """

    name: str
    graph: torch.fx.Graph
    leaves: tuple[Leaf, ...]
    outputs: tuple[torch.fx.Node, ...]
    paths: tuple[str, ...]
    inner: frozenset[int]
    assemble: Callable[[Sequence[Tensor]], Any]
    mutates: bool
    where: Source
    plates: tuple[Plate, ...] = ()
    returned_memory: frozenset[int] = frozenset()
    checked: CheckedProgram | None = None


def mark_of(node: torch.fx.Node) -> Mark | None:
    """The user's mark on a torch.fx node."""
    return node.meta.get("mark")


def type_of(node: torch.fx.Node) -> TensorType | None:
    """The tensor type of a torch.fx node; None for tuples."""
    return node.meta.get("type")
