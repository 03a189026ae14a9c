"""Who can receive messages, who stands next to whom, and which nodes a target means."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Any

from propc.errors import MessageError, message, nearest
from propc.ir.messages import CHILDREN, PARENTS, SELF, Target
from propc.ir.nodes.cost import Cost
from propc.ir.nodes.leaves import LeafNode
from propc.ir.nodes.node import Kind, Node
from propc.ir.records import Ref

BACKWARD, FORWARD = "backward", "forward"


@dataclass(frozen=True)
class Wiring:
    """The nodes of a graph as messages see them.

    Attributes:
        nodes: the graph's nodes, in program order.
    """

    nodes: Mapping[str, Node]

    @cached_property
    def vertices(self) -> tuple[str, ...]:
        """The nodes that handle messages, in program order."""
        return tuple(name for name, node in self.nodes.items() if node.takes_messages)

    @cached_property
    def place(self) -> dict[str, int]:
        """Position of each node in program order."""
        return {name: i for i, name in enumerate(self.nodes)}

    @cached_property
    def parents(self) -> dict[str, tuple[str, ...]]:
        """For each vertex the nearest ones before it, past whatever handles no messages."""
        known = set(self.vertices)
        near: dict[Ref, tuple[str, ...]] = {}
        found: dict[str, tuple[str, ...]] = {}
        for name, node in self.nodes.items():
            if name in known:
                found[name] = _union([near[ref] for ref in node.inputs])
            for port in range(max(1, len(node.outputs))):
                near[Ref(name, port)] = (name,) if name in known else _union([near[ref] for ref in node.depends(port)])
        return found

    @cached_property
    def children(self) -> dict[str, tuple[str, ...]]:
        """For each vertex the nearest ones after it."""
        found: dict[str, list[str]] = {name: [] for name in self.vertices}
        for name, before in self.parents.items():
            for parent in before:
                found[parent].append(name)
        return {name: tuple(after) for name, after in found.items()}

    def resolve(self, source: str, target: Target, direction: str) -> tuple[str, ...]:
        """The nodes that `target` means for a message from `source`, in program order.

        Raises:
            MessageError: it means none, or one that the pass has visited already.
        """
        found = sorted(set(self._meant(source, target, direction)), key=self.place.__getitem__)
        for name in found:
            if name != source or not holds_self(target):
                self._ahead(source, name, direction)
        return tuple(found)

    def _meant(self, source: str, target: Target, direction: str) -> Sequence[str]:
        if target is PARENTS:
            return self.parents.get(source, ())
        if target is CHILDREN:
            return self.children.get(source, ())
        if target is SELF:
            return (source,)
        if isinstance(target, Kind):
            return self._some(source, direction, [n.name for n in self._receivers if n.kind is target], target)
        if isinstance(target, bool) or not isinstance(target, (str, int, list, tuple)):
            raise self._error(source, f"{target!r} is no target", "Use a name, a pattern, a Kind, PARENTS or a number.")
        if isinstance(target, int):
            return (self._relative(source, target, direction),)
        if isinstance(target, str):
            return self._named(source, target, direction)
        return [name for each in target for name in self._meant(source, each, direction)]

    def _named(self, source: str, target: str, direction: str) -> Sequence[str]:
        if (node := self.nodes.get(target)) is not None and node.addressed:
            return (target,)
        if target in self._by_path:
            return self._by_path[target]
        return self._some(source, direction, [n.name for n in self._receivers if fnmatchcase(n.name, target)], target)

    def _some(self, source: str, direction: str, names: Iterable[str], target: Any) -> Sequence[str]:
        """Of several possible targets those that lie ahead."""
        ahead = [name for name in names if self._is_ahead(source, name, direction)]
        if not ahead:
            known = nearest(str(target), [n.name for n in self._receivers])
            raise self._error(source, f"its {direction} route leads nowhere: {target!s} matches no node ahead", known)
        return ahead

    def _relative(self, source: str, steps: int, direction: str) -> str:
        names = self.vertices
        index = self._rank[source] + (steps if direction == FORWARD else -steps)
        if steps < 1 or not 0 <= index < len(names):
            raise self._error(
                source,
                f"its {direction} route leads nowhere: there is no node {steps} message nodes further",
                "Use a smaller number, or a name.",
            )
        return names[index]

    @cached_property
    def _rank(self) -> dict[str, int]:
        """Position of each vertex among the vertices."""
        return {name: i for i, name in enumerate(self.vertices)}

    @cached_property
    def _by_path(self) -> dict[str, list[str]]:
        """Inputs, parameters and costs by their path."""
        found: dict[str, list[str]] = {}
        for node in self._receivers:
            if isinstance(node, (Cost, LeafNode)):
                found.setdefault(node.path, []).append(node.name)
        return found

    @cached_property
    def _receivers(self) -> list[Node]:
        """Nodes that can be addressed by name."""
        return [n for n in self.nodes.values() if n.addressed]

    def _is_ahead(self, source: str, name: str, direction: str) -> bool:
        further = self.place[name] - self.place[source]
        return further > 0 if direction == FORWARD else further < 0

    def _ahead(self, source: str, name: str, direction: str) -> None:
        if self._is_ahead(source, name, direction):
            return
        if name == source:
            finding, fix = "it sends to itself, which is a cycle", "Send to SELF to get a message at the next call."
        else:
            side = "before" if direction == FORWARD else "after"
            finding = f"its {direction} route to {name!r} is a cycle: {name!r} comes {side} it in the program"
            fix = "Send it in the other pass, or keep it for the next call with SELF."
        raise self._error(source, finding, fix)

    def _error(self, source: str, finding: str, fix: str) -> MessageError:
        return MessageError(message(finding, fix, at=f"node {source!r}", where=self.nodes[source].where))


def declared(node: Node, direction: str) -> Target:
    """What a node's messages are sent to without a target of their own: forced by a pass, or its propagator's."""
    rule = node.propagator
    if direction == FORWARD:
        return None if rule is None else rule.forward_targets
    forced = getattr(node, "forced", None)
    return rule.targets if forced is None and rule is not None else forced


def holds_self(target: Target) -> bool:
    """Whether a target is, or is among others, `SELF`."""
    return target is SELF or (isinstance(target, (list, tuple)) and any(map(holds_self, target)))


def _union(groups: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    """Names in their first order, once each."""
    return groups[0] if len(groups) == 1 else tuple(dict.fromkeys(name for group in groups for name in group))
