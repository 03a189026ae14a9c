"""An operation that is to act on values with plates in front of their own dimensions, and the rules for it.

A value of the program's shape [batch, ...] has the shape [*plates, batch, ...] at run time. Most operations look at
trailing dimensions, or can be told to, and then need no `torch.vmap`. A rule writes the operation anew, or says by
None that it does not hold here, and then `torch.vmap` stands in for it. All are in `propc.runtime.batching.table`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch.fx
from torch import Tensor

from propc.fx.operations import name_of
from propc.fx.program import type_of
from propc.ir.named_dims import Names
from propc.types import TensorType

Node = torch.fx.Node
Rule = Callable[["BatchedOperation"], "Node | None"]
MISSING = object()  # an argument that is not given


@dataclass(frozen=True)
class BatchedOperation:
    """An operation to be written for values in plates.

    Attributes:
        emit: writes an operation into the new graph: (torch.fx op, target, args, kwargs).
        node: as it was traced, for values of the program's own shapes.
        args, kwargs: its arguments in the new graph; ``meta`` of each node in them has its ``type``, of the program's
            shape, its ``plates``, and ``lead``, the number of dimensions in front of the program's.
        plates: those of the result.
        lead: the number of dimensions in front of the result's own.
    """

    emit: Callable[[str, Any, Any, Any], Node]
    node: Node
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    plates: Names
    lead: int

    @property
    def name(self) -> str:
        """The operation's plain name."""
        target = self.node.target
        return target if isinstance(target, str) else name_of(target)

    @property
    def kind(self) -> TensorType | None:
        """What the result is in the program; None for a tuple."""
        return type_of(self.node)

    @property
    def shape(self) -> tuple[int, ...]:
        """The result's shape in the program."""
        assert self.kind is not None
        return self.kind.shape

    @property
    def tensors(self) -> list[Node]:
        """The arguments that are tensors."""
        found: list[Node] = []
        torch.fx.node.map_arg((self.args, self.kwargs), found.append)
        return found

    @property
    def single(self) -> bool:
        """Whether the first argument is the only tensor."""
        return self.tensors == [self.args[0]] if self.args else False

    @property
    def first_leads(self) -> bool:
        """Whether the first argument is the only one in plates."""
        return [n for n in self.tensors if n.meta["lead"]] == [self.args[0]] if self.args else False

    @property
    def promotes(self) -> bool:
        """Whether dtypes may come out differently, as a single number has less to say than a row of them."""
        bare = any(n.meta["lead"] and not rank(n) for n in self.tensors)
        return bare and len({n.meta["type"].dtype for n in self.tensors}) > 1

    def written(self, args: Sequence[Any] | None = None, **changed: Any) -> Node:
        """The same operation on other arguments."""
        args = self.args if args is None else tuple(args)
        return self.emit(self.node.op, self.node.target, args, {**self.kwargs, **changed})

    def method(self, name: str, *args: Any) -> Node:
        """A method of a tensor."""
        return self.emit("call_method", name, args, {})

    def call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Node:
        """A function."""
        return self.emit("call_function", function, args, kwargs)

    def mapped(self, change: Callable[[Node], Node]) -> BatchedOperation:
        """The step with other tensors as arguments."""
        args, kwargs = torch.fx.node.map_arg((self.args, self.kwargs), change)
        return replace(self, args=args, kwargs=kwargs)

    def argument(self, name: str, position: int) -> Any:
        """An argument that is no tensor; `MISSING` where it is not given."""
        return self.args[position] if len(self.args) > position else self.kwargs.get(name, MISSING)

    def replaced(self, name: str, position: int, value: Any) -> Node:
        """The same operation with another value of an argument."""
        if len(self.args) > position:
            return self.written((*self.args[:position], value, *self.args[position + 1 :]))
        return self.written(**{name: value})

    def spread(self, value: Node) -> Node | None:
        """A value with an element of its own in each plate of the result; None where that is not easily made."""
        if value.meta["plates"] == self.plates:
            return value
        whole = next((n for n in self.tensors if n.meta["plates"] == self.plates), None)
        return None if whole is None or value.meta["plates"] else self.call(_spread, value, whole, self.lead)


def rank(value: Node) -> int:
    """The number of dimensions that a value has in the program."""
    return len(value.meta["type"].shape)


def rules_into(table: dict[str, Rule]) -> Callable[[str], Callable[[Rule], Rule]]:
    """A decorator that enters a rule into a table, under the names of operations.

    The names are those of functions, and of methods without underscores.
    """

    def rule(names: str) -> Callable[[Rule], Rule]:
        def register(function: Rule) -> Rule:
            table.update(dict.fromkeys(names.split(), function))
            return function

        return register

    return rule


def _spread(value: Tensor, like: Tensor, lead: int) -> Tensor:
    return value.expand(like.shape[:lead] + value.shape)
