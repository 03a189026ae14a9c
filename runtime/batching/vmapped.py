"""One operation on values in plates through `torch.vmap`: what an operation without a rule of its own is written as."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.fx
from torch import Tensor

from propc.fx.assignment import index_filled, select_scattered
from propc.fx.operations import is_random, step_name
from propc.fx.run_step import run_step
from propc.ir.named_dims import Names, aligned, closed
from propc.util.torch_private import StopRecomputation, pytree
from propc.util.torch_rng import same_random

Refuse = Callable[[torch.fx.Node, Exception], None]

# What vmap gets wrong, in silence: written anew. `tests/runtime/batching/test_vmap_is_right.py` tries it on others.
_RIGHT: Mapping[str, Callable[..., Any]] = {"select_scatter": select_scattered, "index_fill": index_filled}
_TENSOR = object()  # among what an operation gives beside, such as None


class VmappedOperation:
    """An operation that takes the tensors among its arguments in plates, and gives its result so.

    Args:
        node: the operation, for values of the program's own shapes.
        have: the plates of each tensor among its arguments, in the order of `tensors_in`.
        plates: those of the result; an operation that draws has more of them than its arguments.
        order: all plates of the segment; see `propc.runtime.batching.lifted_code.LiftedCode` for their dimensions.
        sizes: of all plates.
        common: the plates all of whose elements draw the same.
        refuse: called with the node and torch's error where vmap cannot run it; raises a better one.
    """

    def __init__(
        self,
        node: torch.fx.Node,
        have: Sequence[Names],
        plates: Names,
        order: Names,
        sizes: Mapping[str, int],
        common: frozenset[str],
        refuse: Refuse,
    ) -> None:
        self.node, self.have, self.plates, self.order = node, have, plates, order
        self.sizes, self.common, self.refuse = [sizes[name] for name in plates], common, refuse
        self.draws = is_random(node)
        self.function = _RIGHT.get(step_name(node))
        self.__name__ = self.__qualname__ = "vmapped"
        self.__module__ = __name__

    def __call__(self, *values: Tensor) -> Any:
        own = [closed(value, have, self.order) for value, have in zip(values, self.have)]
        rest: list[Any] = []

        def tensors(*some: Tensor) -> list[Tensor]:
            leaves, tree = pytree.tree_flatten(self.plain(some[: len(own)]))
            rest[:] = tree, [_TENSOR if isinstance(leaf, Tensor) else leaf for leaf in leaves]
            return [leaf for leaf in leaves if isinstance(leaf, Tensor)]

        # What draws may read nothing that is in all plates; `chunk=` does not concern it.
        beside = [torch.empty(self.sizes, device="meta")] if self.draws else []
        run: Callable[..., Any] = tensors
        for name in reversed(self.plates):  # the innermost first
            into = (*(0 if name in have else None for have in self.have), *(0 for _ in beside))
            run = torch.vmap(run, into, 0, randomness="same" if name in self.common else "different")
        try:
            found = iter(run(*own, *beside))
        except StopRecomputation:  # a checkpoint has all that it needs, and says so from within
            raise
        except Exception as error:
            if not self._fails_alone(own):
                self.refuse(self.node, error)
            raise
        tree, others = rest
        if self.draws and self.common:  # one draw for all elements, which may be written into
            found = (tensor.clone() for tensor in found)
        made = [aligned(next(found), self.plates, self.order) if other is _TENSOR else other for other in others]
        return pytree.tree_unflatten(made, tree)

    def plain(self, values: Sequence[Tensor]) -> Any:
        """The operation as it was written."""
        return run_step(self.node, dict(zip(tensors_in(self.node), values)), self.function)

    def _fails_alone(self, own: Sequence[Tensor]) -> bool:
        """Whether it fails on a single element too."""
        with same_random():
            try:
                self.plain([value[(0,) * len(have)].clone() for value, have in zip(own, self.have)])
            except Exception:
                return True
        return False


def tensors_in(node: torch.fx.Node) -> tuple[torch.fx.Node, ...]:
    """The tensors among an operation's arguments, each once."""
    return tuple(node.all_input_nodes)
