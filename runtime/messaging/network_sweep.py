"""One pass over the nodes of a network: visit each once, hand on what it sends."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from propc.errors import MessageError
from propc.ir.adjacency import FORWARD
from propc.ir.messages import EMPTY, Message
from propc.propagators.propagator import NodeView, Sent, note
from propc.runtime.messaging.mailbox import Directory, Post

Visit = Callable[[NodeView, Message], Sent]


@dataclass(frozen=True, slots=True)
class Stretch:
    """Nodes in a row, each of which sends to the next alone, and the next receives from it alone."""

    visits: tuple[tuple[Visit, NodeView], ...]


class Sweep:
    """The visits of one direction, prepared once.

    Args:
        directory: where nodes send.
        views: the nodes that handle messages, in program order.
    """

    def __init__(self, directory: Directory, views: Sequence[NodeView]) -> None:
        self.directory = directory
        forward = directory.direction == FORWARD
        ordered = views if forward else views[::-1]
        self.visits = tuple((_visit(view, forward), view) for view in ordered)
        self.stretches = self._stretches()

    def run(self, *initial: Mapping[str, Message]) -> Post:
        """Visit every node.

        Args:
            *initial: messages that wait at nodes from the beginning, by node.
        """
        post = Post(self.directory)
        for each in initial:
            for name, sent in each.items():
                post.deliver("the caller", self.directory.checked(name, sent), (name,))
        starts = {stretch.visits[0][1].name for stretch in self.stretches} if post.waiting else set()
        straight = post.waiting.keys() <= starts
        for stretch in self.stretches if straight else [Stretch((visit,)) for visit in self.visits]:
            _walk(stretch, post)
        return post

    def _stretches(self) -> tuple[Stretch, ...]:
        targets, near = self.directory.targets, self.directory.near
        sources: dict[str, int] = {}
        for _, view in self.visits:  # a message with a target of its own may go to any of these
            for end in {*targets.get(view.name, ()), *near.get(view.name, ())}:
                sources[end] = sources.get(end, 0) + 1
        found: list[list[tuple[Visit, NodeView]]] = []
        before: str | None = None
        for visit in self.visits:
            name = visit[1].name
            if before is not None and self.directory.targets_of(before) == (name,) and sources[name] == 1:
                found[-1].append(visit)
            else:
                found.append([visit])
            before = name
        return tuple(Stretch(tuple(visits)) for visits in found)


def _visit(view: NodeView, forward: bool) -> Visit:
    rule = view.record.propagator
    assert rule is not None
    return rule.forward if forward else rule.backward


def _walk(stretch: Stretch, post: Post) -> None:
    """Visit the nodes of a stretch; between them a message that was only handed on needs no looking at."""
    visits = stretch.visits
    view = visits[0][1]
    sent: Sent = None
    last = None
    try:
        message = post.take(view.name)
        for call, view in visits:
            if last is not None and sent is not message:
                message = post.relay(last, sent, view.name)
            sent = call(view, message)
            last = view
        post.put(view.name, sent if sent is not EMPTY else None)
    except MessageError:
        raise
    except Exception as error:
        note(error, view)
        raise
