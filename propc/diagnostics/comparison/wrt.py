"""The tensors that a call reads, and those among them that `wrt` means."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor

from propc.errors import PropcTypeError, PropcValueError, message, nearest
from propc.ir.graph import PropagationGraph
from propc.util.torch_private import pytree

Leaves = list[tuple[str, Tensor]]


def leaves_of(graph: PropagationGraph, owner: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Leaves:
    """The tensors of a call with their paths: its arguments, and what the program holds.

    Args:
        graph: of that call.
        owner: the module or object that the program is called with, or None.
    """
    assert graph.program is not None
    given = (leaf for leaf in pytree.tree_leaves((args, dict(kwargs))) if isinstance(leaf, Tensor))
    every = [
        (leaf.path, next(given) if leaf.fetch is None else leaf.fetch(owner), leaf.constant)
        for leaf in graph.program.leaves
    ]
    return [(path, tensor) for path, tensor, constant in every if not constant]


def chosen(leaves: Leaves, wrt: Any) -> dict[str, Tensor]:
    """The tensors that `wrt` means, by name, each once.

    Args:
        leaves: of the call.
        wrt: None for all that want a gradient; the path of an argument or parameter, or of a module or
            container that holds some; a tensor; or a sequence of these.

    Raises:
        PropcValueError: an unknown name, or a tensor that wants no gradient.
        PropcTypeError: `wrt` is none of these.
    """
    found: dict[str, Tensor] = {}
    for name, tensor in _meant(leaves, wrt):
        if not any(tensor is known for known in found.values()):
            found[_unique(name, found)] = tensor
    return found


def _meant(leaves: Leaves, wrt: Any) -> Leaves:
    if wrt is None:
        wanted = [leaf for leaf in leaves if leaf[1].requires_grad]
        if not wanted:
            raise PropcValueError(
                message(
                    "wrt=None means all tensors that want a gradient, and this call reads none",
                    "Set requires_grad_() on an argument or a parameter.",
                )
            )
        return wanted
    if isinstance(wrt, str):
        return _named(leaves, wrt)
    if isinstance(wrt, Tensor):
        _check(wrt.requires_grad, "wrt= was given a tensor that wants no gradient")
        return [(next((path for path, tensor in leaves if tensor is wrt), "wrt"), wrt)]
    if isinstance(wrt, (list, tuple)):
        return [leaf for each in wrt for leaf in _meant(leaves, each)]
    raise PropcTypeError(message(f"wrt= takes nothing, a name, a tensor, or a list of these; got {type(wrt).__name__}"))


def _named(leaves: Leaves, name: str) -> Leaves:
    matching = [leaf for leaf in leaves if leaf[0] == name or leaf[0].startswith((f"{name}.", f"{name}["))]
    if not matching:
        raise PropcValueError(message(f"wrt={name!r} is no tensor of this call", nearest(name, dict(leaves))))
    wanted = [leaf for leaf in matching if leaf[1].requires_grad]
    _check(bool(wanted), f"wrt={name!r} wants no gradient")
    return wanted


def _check(wanted: bool, finding: str) -> None:
    if not wanted:
        raise PropcValueError(message(finding, "Set requires_grad_() on it."))


def _unique(name: str, taken: Iterable[str]) -> str:
    """The name, numbered where an argument and a parameter share it."""
    number, taken = 1, set(taken)
    made = name or "tensor"
    while made in taken:
        number += 1
        made = f"{name} ({number})"
    return made
