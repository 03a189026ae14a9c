"""The post office of one pass over a graph: messages wait here until their node is visited."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

from propc.errors import MessageError, message, nearest
from propc.ir.adjacency import FORWARD, declared, holds_self
from propc.ir.graph import PropagationGraph
from propc.ir.messages import EMPTY, SELF, Field, Message, copied, merged
from propc.propagators.propagator import NodeView, Sent

Waiting = dict[str, list[tuple[str, Message]]]


def several(sent: Sent) -> Iterator[Any]:
    """What a propagator has returned, one by one; no two of them share a tensor."""
    if sent is None:
        return
    if isinstance(sent, (Message, Tensor, str)) or not isinstance(sent, Iterable):
        yield sent
        return
    for i, each in enumerate(sent):
        yield copied(each).to(each.target) if i and isinstance(each, Message) else each


class Directory:
    """Where the nodes of a graph send in one direction, from its planned routes."""

    def __init__(self, graph: PropagationGraph, direction: str) -> None:
        self.graph, self.direction = graph, direction
        self.fields: Mapping[str, Field] = graph.fields
        self.batch = None if graph.program is None else graph.batch
        kind = "forward" if direction == FORWARD else "message"
        self.targets: dict[str, tuple[str, ...]] = {
            route.source: tuple(token.site for token in route.targets) for route in graph.routes if route.kind == kind
        }
        for name in graph.wiring.vertices:
            if holds_self(declared(graph.nodes[name], direction)):
                self.targets[name] = (*self.targets.get(name, ()), name)
        self.near = graph.wiring.children if direction == FORWARD else graph.wiring.parents
        self.lists = any(field.merge == "list" for field in self.fields.values())
        self._known: dict[tuple[str, Any], tuple[str, ...]] = {}

    def targets_of(self, source: str) -> tuple[str, ...]:
        """Where a node sends what has no target of its own; without a planned route, to the next nodes."""
        planned = self.targets.get(source)
        return self.near.get(source, ()) if planned is None else planned

    def meant(self, source: str, target: Any) -> tuple[str, ...]:
        """The nodes that a message's own target means.

        Raises:
            MessageError: it means none, or one that no planned route of the sender leads to.
        """
        node = self.graph.nodes[source]
        if getattr(node, "forced", None) is not None and self.direction != FORWARD:
            return self.targets_of(source)
        key = source, repr(target)
        if key not in self._known:
            found = self.graph.wiring.resolve(source, target, self.direction)
            planned = {*self.targets.get(source, ()), *self.near.get(source, ())}
            for name in found:
                if name not in planned and name != source:
                    raise MessageError(
                        message(
                            f"its message is for {name!r}, to which no route is planned",
                            f"Name it in the propagator's targets. {nearest(name, planned)}",
                            at=f"node {source!r}",
                            where=node.where,
                        )
                    )
            self._known[key] = found
        return self._known[key]

    def checked(self, sender: str, sent: Any) -> Message:
        """A message whose fields are declared and have their declared shapes.

        Raises:
            MessageError: an unknown field, or one of another shape.
        """
        if not isinstance(sent, Message):
            raise self._error(sender, f"it returned {type(sent).__name__}", "Return a propc.Message, several, or None.")
        for name, value in sent.items():
            field = self.fields.get(name)
            if field is None:
                known = nearest(name, self.fields)
                raise self._error(sender, f"it sends the unknown field {name!r}", f"Declare it in `sends`. {known}")
            if field.shape is not None and isinstance(value, Tensor):
                self._check_shape(sender, field, value)
        return sent

    def _check_shape(self, sender: str, field: Field, value: Tensor) -> None:
        assert field.shape is not None
        wanted = [self.batch if size == "batch" else size for size in field.shape]
        fits = len(wanted) == value.dim() and all(w is None or w == n for w, n in zip(wanted, value.shape))
        if not fits:
            shown = ", ".join(str(size) for size in field.shape)
            raise self._error(
                sender,
                f"it sends the field {field.name!r} as {list(value.shape)}, declared is [{shown}]",
                "Send it in that shape, or change the declaration.",
            )

    def _error(self, name: str, finding: str, fix: str) -> MessageError:
        return MessageError(message(finding, fix, at=f"node {name!r}", where=self.graph.nodes[name].where))


class Post:
    """Messages on their way in one pass.

    Attributes:
        remaining: what nobody takes, by the node where it ended.
        kept: what nodes have sent to themselves.
    """

    def __init__(self, directory: Directory) -> None:
        self.directory = directory
        self.waiting: Waiting = {}
        self.remaining: Waiting = {}
        self.kept: Waiting = {}

    def put(self, sender: str, sent: Sent) -> None:
        """Send what a propagator has returned.

        Raises:
            MessageError: a message that cannot be sent.
        """
        if isinstance(sent, Message):
            self._send(sender, sent)
        elif sent is not None:
            for each in several(sent):
                self._send(sender, each)

    def _send(self, sender: str, sent: Message) -> None:
        """Send one message to its own targets, or to those of its sender."""
        plain = self.directory.checked(sender, sent)
        targets = self.directory.targets_of(sender)
        if sent.target is not None:
            plain = sent.to(None)
            targets = (sender,) if sent.target is SELF else self.directory.meant(sender, sent.target)
        if sender in targets:
            self._keep(sender, plain)
            targets = tuple(name for name in targets if name != sender)
            if not targets:
                return
        self.deliver(sender, plain, targets)

    def deliver(self, sender: str, sent: Message, targets: Sequence[str]) -> None:
        """Let a message wait at its targets; all but the first get tensors of their own."""
        if not sent:
            return
        if not targets:
            self.remaining.setdefault(sender, []).append((sender, sent))
        for i, target in enumerate(targets):
            self.waiting.setdefault(target, []).append((sender, copied(sent) if i else sent))

    def take(self, name: str) -> Message:
        """What has arrived at a node, as one message."""
        arrived = self.waiting.pop(name, None)
        if arrived is None:
            return EMPTY
        if len(arrived) == 1 and not self.directory.lists:
            return arrived[0][1]
        return merged(arrived, self.directory.fields, name)

    def relay(self, view: NodeView, sent: Sent, after: str) -> Message:
        """Send from one node and take at another."""
        self.put(view.name, sent)
        return self.take(after)

    def _keep(self, sender: str, sent: Message) -> None:
        rule = self.directory.graph.nodes[sender].propagator
        known = [field.name for field in rule.keeps] if rule is not None else []
        for name in sent:
            if name not in known:
                raise self.directory._error(
                    sender, f"it keeps the field {name!r} for itself", f"Declare it in `keeps`. {nearest(name, known)}"
                )
        self.kept.setdefault(sender, []).append((sender, sent))

    def left(self) -> dict[str, Message]:
        """What nobody took, as one message for each node where it ended."""
        fields = self.directory.fields
        names = dict.fromkeys((*self.remaining, *self.waiting))
        return {
            name: merged([*self.remaining.get(name, ()), *self.waiting.get(name, ())], fields, name) for name in names
        }
