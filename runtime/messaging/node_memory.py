"""What nodes keep from call to call: messages to themselves, and modules of state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from propc.ir.graph import PropagationGraph
from propc.ir.messages import Message, merged
from propc.runtime.lowering.node_views import NodeViews
from propc.util.estimator_state import EstimatorState
from propc.util.torch_private import StateDictModule, pytree

PREFIX = "field:"  # of the buffers, so that a field may have the name of a module's attribute


class Keepsake(StateDictModule):
    """A message that a node has sent to itself: tensors are buffers, the rest is extra state."""

    def __init__(self) -> None:
        super().__init__()
        self.rest: dict[str, Any] = {}

    def put(self, sent: Message) -> None:
        """Replace what is kept."""
        for name in [name for name, _ in self.named_buffers(recurse=False)]:
            delattr(self, name)
        self.rest = {}
        for name, value in sent.items():
            if isinstance(value, Tensor):
                self.register_buffer(f"{PREFIX}{name}", value.detach().clone())
            else:
                self.rest[name] = pytree.tree_map_only(Tensor, lambda leaf: leaf.detach().clone(), value)

    def message(self) -> Message:
        """What is kept."""
        return Message({**{k.removeprefix(PREFIX): v for k, v in self.named_buffers()}, **self.rest})

    def get_extra_state(self) -> dict[str, Any]:
        return self.rest

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.rest = dict(state)

    def loading(self, state: dict[str, Any], prefix: str) -> None:
        tensors = {key[len(prefix) :]: value for key, value in state.items() if key.startswith(prefix)}
        self.put(Message({k.removeprefix(PREFIX): v for k, v in tensors.items() if isinstance(v, Tensor)}))


class NodeMemory(NodeViews):
    """The persistent memory of a graph's nodes."""

    def __init__(self, graph: PropagationGraph, state: EstimatorState) -> None:
        super().__init__(graph, state)
        self.keepers = [
            name for name in graph.wiring.vertices if (rule := graph.nodes[name].propagator) is not None and rule.keeps
        ]

    def waiting(self) -> dict[str, Message]:
        """What nodes have sent to themselves when they last did."""
        found = {name: self._keepsake(name).message() for name in self.keepers}
        return {name: kept for name, kept in found.items() if kept}

    def keep(self, *sent: Mapping[str, Sequence[tuple[str, Message]]]) -> None:
        """Keep what nodes have sent to themselves in this call, in place of what they kept; an empty message forgets.

        What a node keeps outlasts calls in which it sends nothing, such as a forward pass between two steps of
        training.

        Args:
            sent: of each pass of the call, by node.
        """
        for name in self.keepers:
            own = [each for kept in sent for each in kept.get(name, ())]
            if own:
                with torch.no_grad():
                    self._keepsake(name).put(merged(own, self.graph.fields, name))

    def _keepsake(self, name: str) -> Keepsake:
        part = self.state.part(f"{name}:kept", Keepsake)
        assert isinstance(part, Keepsake)
        return part
