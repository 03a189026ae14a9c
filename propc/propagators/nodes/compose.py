"""Sequence and chain: several propagators at one node."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

from torch import nn

from propc.errors import PropcTypeError, message
from propc.ir.messages import Field, Message
from propc.propagators.propagator import NodeView, Propagator, Sent
from propc.propagators.registry import find


class Sequence(Propagator):
    """Parts act one after the other on one node: in the given order forward, in the opposite one backward.

    Each part gets what the one before returned, and shares the node's memory with the others. Parts given by
    keyword can be configured by name: ``Sequence(score="lr", baseline="baseline").configure(baseline=None)``.

    Args:
        *parts: propagators, or names of propagators.
        **named: likewise, behind those; None is left out.

    Raises:
        PropcTypeError: no part at all, or a part that is no propagator.
    """

    name: ClassVar[str] = "sequence"

    def __init__(self, *parts: Any, **named: Any) -> None:
        known = {f"part{i}": part for i, part in enumerate(parts)} | named
        self._parts: dict[str, Propagator] = {key: find(part) for key, part in known.items() if part is not None}
        if not self._parts:
            raise PropcTypeError(message(f"a {self.name} needs a part", "Give one propagator or more."))

    def named_parts(self) -> Mapping[str, Any]:
        return self._parts

    def with_parts(self, **parts: Any) -> Sequence:
        return type(self)(**{**self._parts, **parts})

    @property
    def parts(self) -> tuple[Propagator, ...]:
        """The parts in order."""
        return tuple(self._parts.values())

    @property
    def sends(self) -> tuple[Field, ...]:  # type: ignore[override]
        return _union(part.sends for part in self.parts)

    @property
    def keeps(self) -> tuple[Field, ...]:  # type: ignore[override]
        return _union(part.keeps for part in self.parts)

    @property
    def targets(self) -> Any:
        own = vars(self).get("targets")
        return own if own is not None else next((part.targets for part in self.parts if part.targets is not None), None)

    @property
    def forward_targets(self) -> Any:
        return next((part.forward_targets for part in self.parts[::-1] if part.forward_targets is not None), None)

    @property
    def idle(self) -> bool:
        return self.targets is None and all(part.idle for part in self.parts)

    def state(self, node: Any) -> nn.Module | None:
        made = {key: module for key, part in self._parts.items() if (module := part.state(node)) is not None}
        return nn.ModuleDict(made) if made else None

    def forward(self, node: NodeView, message: Message) -> Sent:
        return self._through([(key, part.forward) for key, part in self._parts.items()], node, message)

    def backward(self, node: NodeView, message: Message) -> Sent:
        return self._through([(key, part.backward) for key, part in reversed(self._parts.items())], node, message)

    def _through(self, steps: list[tuple[str, Any]], node: NodeView, sent: Message) -> Sent:
        for i, (key, step) in enumerate(steps):
            result: Sent = step(self._view(node, key), sent)
            if i == len(steps) - 1 or result is None:
                return result
            if not isinstance(result, Message):
                raise PropcTypeError(
                    message(
                        f"part {key!r} returned {type(result).__name__}, and another part comes after it",
                        "Only the last part may send several messages.",
                        at=f"node {node.name!r}",
                        where=node.where,
                    )
                )
            sent = result
        return sent

    def _view(self, node: NodeView, key: str) -> NodeView:
        """The node as a part sees it: its own state, everything else shared."""
        return node.part(key, shared=True)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{key}={part!r}' for key, part in self._parts.items())})"


class Chain(Sequence):
    """Parts act like nodes in a row: each has its own memory, and works on the value that the one before left.

    Otherwise as `Sequence`.
    """

    name: ClassVar[str] = "chain"

    def _view(self, node: NodeView, key: str) -> NodeView:
        return node.part(key, shared=False)


def _union(groups: Iterable[tuple[Field, ...]]) -> tuple[Field, ...]:
    return tuple(dict.fromkeys(field for group in groups for field in group))
