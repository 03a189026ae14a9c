"""Random networks with random routes and merges, against message passing written down naively."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import example, given, settings

import propc
from propc import PARENTS, Field, Message
from propc.propagators import NodeView

# The fields, with their merges as Python functions of all that arrived; None where there must be one.
MERGES: dict[str, Callable[[list[Any]], Any]] = {
    "total": sum,
    "trail": tuple,
    "last": lambda arrived: arrived[-1],
    "least": min,
}
FIELDS = (Field("total"), Field("trail", "list"), Field("last", "replace"), Field("least", min))


@dataclass(frozen=True)
class Spec:
    """A node of a random network: parents, what it sends, and where to, by direction."""

    parents: tuple[int, ...]
    number: int
    fields: tuple[str, ...]
    idle: bool
    back: tuple[Any, ...]
    on: tuple[Any, ...]
    one_by_one: bool  # it sends to each of its targets a message of its own


@st.composite
def networks(draw: st.DrawFn) -> list[Spec]:
    count = draw(st.integers(1, 8))
    specs = []
    for i in range(count):
        idle = draw(st.integers(0, 3)) == 0
        parents = draw(st.lists(st.integers(0, i - 1), unique=True, max_size=3)) if i else []
        back = draw(targets(range(i), i)) if i and not idle else ()
        on = draw(targets(range(i + 1, count), count - 1 - i)) if i < count - 1 and not idle else ()
        fields = draw(st.lists(st.sampled_from(sorted(MERGES)), unique=True))
        specs.append(Spec(tuple(parents), draw(st.integers(-9, 9)), tuple(fields), idle, back, on, draw(st.booleans())))
    return specs


@st.composite
def targets(draw: st.DrawFn, ahead: range, steps: int) -> tuple[Any, ...]:
    """Names, relative positions and patterns that lead somewhere; often none."""
    if draw(st.booleans()):
        return ()
    one = st.one_of(
        st.sampled_from(ahead).map(name_of),
        st.integers(1, steps),
        st.sampled_from([group_of(i) + "*" for i in ahead]),
    )
    return tuple(draw(st.lists(one, min_size=1, max_size=3)))


def name_of(i: int) -> str:
    return f"{group_of(i)}{i}"


def group_of(i: int) -> str:
    return "ab"[i % 2]


def sent_by(spec: Spec, name: str, arrived: dict[str, Any]) -> dict[str, Any]:
    """What a node makes of what arrived; some of it depends on that, some does not."""
    made = {"total": arrived.get("total", 0) * 2 + spec.number, "trail": name, "last": name, "least": spec.number}
    return {field: made[field] for field in spec.fields}


class Noted(propc.Propagator):
    """Notes what arrives, and sends something of its own beside what it hands on or in its place."""

    sends = FIELDS

    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        self.targets, self.forward_targets = list(spec.back) or None, list(spec.on) or None

    def forward(self, node: NodeView, message: Message) -> Any:
        node.memory.forward = dict(message)
        return self._sent(node, message, self.spec.on)

    def backward(self, node: NodeView, message: Message) -> Any:
        node.memory.backward = dict(message)
        return self._sent(node, message, self.spec.back)

    def _sent(self, node: NodeView, message: Message, targets: tuple[Any, ...]) -> Any:
        made = Message(sent_by(self.spec, node.name, dict(message)))
        return (made.to(target) for target in targets) if self.spec.one_by_one and targets else made


# -- the oracle: nothing of propc ----------------------------------------------------------


def meant(targets: tuple[Any, ...], source: int, near: list[int], count: int, step: int) -> list[list[int]]:
    """For each target the nodes that it means, in program order."""
    if not targets:
        return [sorted(near)]
    found = []
    for target in targets:
        if isinstance(target, int):
            found.append([source + step * target])
        elif "*" in target:
            found.append([i for i in range(count) if fnmatchcase(name_of(i), target) and (i - source) * step > 0])
        else:
            found.append([i for i in range(count) if name_of(i) == target])
    return found


def oracle(
    specs: list[Spec], initial: dict[int, dict[str, Any]], forward: bool
) -> tuple[list[dict[str, Any]], dict[str, dict[str, Any]]]:
    """What every node receives, and what is left: ask recursively who sends to a node, and what."""
    count, step = len(specs), 1 if forward else -1
    children = [[j for j, other in enumerate(specs) if i in other.parents] for i in range(count)]

    def letters(i: int) -> list[tuple[tuple[int, ...], dict[str, Any]]]:
        """(targets, fields) of each message that node i sends."""
        spec, arrived = specs[i], received(i)
        near = children[i] if forward else list(spec.parents)
        ends = meant(spec.on if forward else spec.back, i, near, count, step)
        made = arrived if spec.idle else sent_by(spec, name_of(i), arrived)
        if spec.one_by_one:
            return [(tuple(each), made) for each in ends]
        return [(tuple(sorted({end for each in ends for end in each})), made)]

    def received(i: int) -> dict[str, Any]:
        senders = range(i) if forward else range(count - 1, i, -1)
        arrived = [initial[i]] if i in initial else []
        arrived += [fields for s in senders for ends, fields in letters(s) if i in ends]
        return together(arrived)

    left = {name_of(i): together([f for ends, f in letters(i) if not ends]) for i in range(count)}
    return [received(i) for i in range(count)], {name: fields for name, fields in left.items() if fields}


def together(arrived: list[dict[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for field, merge in MERGES.items():
        values = [each[field] for each in arrived if field in each]
        if values and field == "trail":
            found[field] = tuple(x for v in values for x in (v if isinstance(v, tuple) else (v,)))
        elif values:
            found[field] = merge(values)
    return found


# -- the test ---------------------------------------------------------------------------


def build(specs: list[Spec]) -> propc.Network:
    made = propc.Network()
    for i, spec in enumerate(specs):
        rule = propc.Propagator() if spec.idle else Noted(spec)
        made.add(name_of(i), rule, [name_of(p) for p in spec.parents])
    return made


PLAIN = Spec((), 1, ("total", "trail"), False, (), (), False)
JUMP = [
    PLAIN,
    Spec((0,), 2, ("total", "trail"), False, (), (), False),
    Spec((1,), 3, ("total", "last", "trail"), False, (2, "a0"), (), True),
    Spec((2,), 4, ("least",), False, (), (), False),
]


@pytest.mark.slow
@settings(max_examples=150)
@example(JUMP, False)
@given(networks(), st.booleans())
def test_what_every_node_receives(specs: list[Spec], one_by_one: bool) -> None:
    network = build(specs)
    start = {"total": 7, "trail": "start"}
    talking = any(not spec.idle for spec in specs)
    fields = start if talking else {}
    begin = [i for i, spec in enumerate(specs) if not spec.parents]
    end = [i for i in range(len(specs)) if not any(i in other.parents for other in specs)]
    for direction, ends in (("forward", begin), ("backward", end), ("forward", begin)):
        wait = {i: fields for i in (ends[:1] if one_by_one else ends) if name_of(i) in network.graph.nodes}
        given_ = {name_of(i): Message(fields) for i in wait} if one_by_one else Message(fields)
        found = network.propagate(direction, given_ if talking else None)
        received, left = oracle(specs, wait, direction == "forward")
        for i, spec in enumerate(specs):
            if not spec.idle:
                assert getattr(found[name_of(i)].memory, direction) == received[i], (direction, name_of(i))
        assert {name: dict(m) for name, m in found.messages.items()} == left


def test_the_oracle_sees_a_wrong_route() -> None:
    """Were the routes of one node different, the comparison would fail."""
    other = [*JUMP[:2], Spec((1,), 3, ("total", "last", "trail"), False, (PARENTS,), (), False), JUMP[3]]
    found = build(other).propagate("backward", Message(total=7, trail="start"))
    received, _ = oracle(JUMP, {3: {"total": 7, "trail": "start"}}, False)
    assert found["a0"].memory.backward != received[0]
