"""Messages: named fields that travel from node to node, and how those that meet are merged."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from torch import Tensor

from propc.errors import MessageError, MissingFieldError, PropcValueError, message, nearest
from propc.util.torch_private import pytree

Merge = str | Callable[[Any, Any], Any]
MERGES = ("sum", "list", "replace", "lock")


class Toward(Enum):
    """Targets that are not names: the nodes next to the sender, or the sender itself at the next call."""

    PARENTS = "parents"
    CHILDREN = "children"
    SELF = "self"

    def __str__(self) -> str:
        return self.value


PARENTS, CHILDREN, SELF = Toward.PARENTS, Toward.CHILDREN, Toward.SELF

Target = Any
"""A node's name, a pattern of names, a `Kind`, `PARENTS`, `CHILDREN` or `SELF`, a relative position (an int:
that many message nodes further in the direction of the message), or a sequence of these."""


@dataclass(frozen=True, slots=True)
class Field:
    """A field that messages may have, and what happens where two of them meet.

    Attributes:
        name: an identifier.
        merge: ``"sum"``; ``"list"``, a tuple in the order of arrival, those that arrive as tuples joined;
            ``"replace"``, the last to arrive; ``"lock"``, an error; or a function of two values, such as
            ``torch.mul``.
        shape: what is known of it when the graph is compiled: sizes, ``"batch"`` for the number of rows,
            None for a size, or for all of it, that is not known.

    Raises:
        PropcValueError: an unknown way of merging, or a name that no field can have.
    """

    name: str
    merge: Merge = "sum"
    shape: tuple[int | str | None, ...] | None = None

    def __post_init__(self) -> None:
        if not str(self.name).isidentifier() or hasattr(Message, self.name):
            raise PropcValueError(
                message(f"a field cannot be named {self.name!r}", "Take an identifier that no method of Message has.")
            )
        if not callable(self.merge) and self.merge not in MERGES:
            raise PropcValueError(
                message(f"field {self.name!r} merges by {self.merge!r}", nearest(str(self.merge), MERGES))
            )

    def __str__(self) -> str:
        how = self.merge if isinstance(self.merge, str) else getattr(self.merge, "__name__", "function")
        return f"{self.name} by {how}"


class Message(Mapping[str, Any]):
    """Named fields on their way to a node; not changed once made.

    ``message.grad`` and ``message["grad"]`` read a field, ``message.get("grad")`` gives None where it
    is missing. The tensors inside are not to be written into; where one message goes to several
    targets, each gets tensors of its own.

    Args:
        fields: by name, beside or instead of keywords.

    Raises:
        MessageError: a field is read that the message does not have.
    """

    __slots__ = ("_fields", "target")
    _fields: dict[str, Any]
    target: Target

    def __init__(self, fields: Mapping[str, Any] | None = None, /, **named: Any) -> None:
        object.__setattr__(self, "_fields", {**fields, **named} if fields else named)
        object.__setattr__(self, "target", None)

    def to(self, target: Target) -> Message:
        """The same message with a target of its own, which is one of those that its sender declares."""
        return self._to(target, self._fields)

    def replace(self, **fields: Any) -> Message:
        """The message with these fields changed or added."""
        return self._to(self.target, {**self._fields, **fields})

    def without(self, *names: str) -> Message:
        """The message without these fields."""
        return self._to(self.target, {k: v for k, v in self._fields.items() if k not in names})

    def only(self, *names: str) -> Message:
        """The message with no other fields than these."""
        return self._to(self.target, {k: v for k, v in self._fields.items() if k in names})

    @staticmethod
    def _to(target: Target, fields: Mapping[str, Any]) -> Message:
        made = Message(fields)
        if target is not None:
            object.__setattr__(made, "target", target)
        return made

    def __getitem__(self, name: str) -> Any:
        try:
            return self._fields[name]
        except KeyError:
            raise self._missing(name) from None

    def get(self, name: str, default: Any = None) -> Any:
        """A field, or `default` where it is missing."""
        return self._fields.get(name, default)

    def __getattr__(self, name: str) -> Any:
        if name in Message.__slots__:  # not made yet, while copying
            raise AttributeError(name)
        try:
            return self._fields[name]
        except KeyError:
            raise self._missing(name) from None

    def _missing(self, name: str) -> MissingFieldError:
        return MissingFieldError(message(f"the message has no field {name!r}", nearest(name, self._fields)))

    def __contains__(self, name: object) -> bool:
        return name in self._fields

    def __setattr__(self, name: str, value: Any) -> None:
        raise MessageError(message(f"a message does not change; {name!r} was assigned", f"Use .replace({name}=...)."))

    def __iter__(self) -> Iterator[str]:
        return iter(self._fields)

    def __len__(self) -> int:
        return len(self._fields)

    def __reduce__(self) -> Any:
        return Message, (self._fields,)

    def __repr__(self) -> str:
        shown = ", ".join(f"{k}={_shown(v)}" for k, v in self._fields.items())
        return f"Message({shown})"


EMPTY = Message()
GRAD = Field("grad")
"""The cotangent on a node's value: ∂(loss)/∂value, of the value's shape."""
COST = Field("cost", shape=("batch",))
"""Σ over the costs sent here of weight × (cost − baseline), [batch]."""


def _shown(value: Any) -> str:
    return f"tensor{list(value.shape)}" if isinstance(value, Tensor) and value.dim() else repr(value)


def copied(sent: Message) -> Message:
    """A message that shares no tensor and no container with `sent`."""
    return Message({k: _apart(v) for k, v in sent.items()})


def _apart(value: Any) -> Any:
    return pytree.tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else copy.deepcopy(leaf), value)


def merged(arrived: Sequence[tuple[str, Message]], fields: Mapping[str, Field], at: str) -> Message:
    """One message of all that arrived.

    Args:
        arrived: (sender, message) in the order of arrival.
        fields: how each field merges.
        at: the receiving node, for errors.

    Raises:
        MessageError: a locked field from two senders, or a sum of what cannot be added.
    """
    found: dict[str, Any] = {}
    senders: dict[str, str] = {}
    for sender, sent in arrived:
        for name, value in sent.items():
            rule = fields[name].merge
            if rule == "list":
                found[name] = (*found.get(name, ()), *(value if isinstance(value, tuple) else (value,)))
            elif name not in found or rule == "replace":
                found[name] = value
            elif rule == "lock":
                raise MessageError(
                    message(
                        f"the field {name!r} is locked, and both {senders[name]!r} and {sender!r} send it",
                        "Send it once, or declare how it merges.",
                        at=f"node {at!r}",
                    )
                )
            else:
                found[name] = _joined(rule, found[name], value, name, (senders[name], sender), at)
            senders[name] = sender
    return Message(found)


def _joined(rule: Merge, a: Any, b: Any, name: str, senders: tuple[str, str], at: str) -> Any:
    shapes = [tuple(x.shape) if isinstance(x, Tensor) else None for x in (a, b)]
    if rule == "sum" and shapes[0] != shapes[1] and None not in shapes:
        raise MessageError(
            message(
                f"the field {name!r} arrives as {list(shapes[0] or ())} from {senders[0]!r} and as "
                f"{list(shapes[1] or ())} from {senders[1]!r}, and is to be summed",
                "Send it in one shape, or declare it to merge by 'list'.",
                at=f"node {at!r}",
            )
        )
    return a + b if rule == "sum" else rule(a, b)  # type: ignore[operator]


def field_table(declared: Iterable[tuple[str, Iterable[Field]]], lines: Mapping[str, object]) -> dict[str, Field]:
    """All fields of a graph by name.

    Args:
        declared: (node, the fields that its propagator sends).
        lines: the user's line of each node.

    Raises:
        MessageError: two nodes declare one field differently; names both.
    """
    table = {GRAD.name: GRAD, COST.name: COST}
    owner = {GRAD.name: "propc", COST.name: "propc"}
    for node, fields in declared:
        for field in fields:
            known = table.setdefault(field.name, field)
            if known is not field and known != field:
                raise MessageError(
                    message(
                        f"it sends the field {field!s} of shape {field.shape}, {owner[field.name]!r} declares "
                        f"{known!s} of shape {known.shape}",
                        "Declare a field once and share it.",
                        at=f"node {node!r}",
                        where=lines[node],
                    )
                )
            owner.setdefault(field.name, node)
    return table
