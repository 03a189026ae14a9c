"""What a propagation gives back, and the names of its directions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from propc.errors import PropcTypeError, PropcValueError, message, nearest
from propc.ir.adjacency import BACKWARD, FORWARD
from propc.ir.messages import Message
from propc.propagators.propagator import NodeView


@dataclass(frozen=True)
class Propagation:
    """What a propagation gave.

    Attributes:
        messages: what nobody took: by node, or by the path of a tensor of the program.
        nodes: the nodes as their propagators left them, with their ``memory`` and ``value``.
        value: what the program returned; None for a network.
    """

    messages: Mapping[str, Message]
    nodes: Mapping[str, NodeView] = field(repr=False)
    value: Any = None

    def __getitem__(self, name: str) -> NodeView:
        if name not in self.nodes:
            raise PropcValueError(message(f"no propagator visited a node {name!r}", nearest(name, self.nodes)))
        return self.nodes[name]


def check_call(direction: str, *initial: Any) -> None:
    """Check the name of a direction, and what is to wait at the beginning.

    Raises:
        PropcValueError: an unknown direction; the nearest is named.
        PropcTypeError: an initial message that is neither a message, nor a mapping of messages, nor None.
    """
    if direction not in (FORWARD, BACKWARD):
        raise PropcValueError(message(f"unknown direction {direction!r}", nearest(str(direction), (FORWARD, BACKWARD))))
    for sent in initial:
        each = sent.values() if isinstance(sent, Mapping) and not isinstance(sent, Message) else [sent]
        for one in each:
            if one is not None and not isinstance(one, Message):
                raise PropcTypeError(
                    message(
                        f"propagate({direction!r}, ...) begins with a message; got {type(one).__name__}",
                        "Give a propc.Message, a mapping from names to messages, or None, before the program's "
                        "arguments.",
                    )
                )
