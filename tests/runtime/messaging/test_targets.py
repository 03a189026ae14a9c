"""Targets: what each of them means, which of them counts, and which lead nowhere."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal

import propc
from propc import CHILDREN, PARENTS, SELF, Field, Message, MessageError
from propc.ir import Kind, Named
from propc.passes import Pass

X = Field("x", "list")


class Speaker(propc.Propagator):
    """Sends its own name in one direction, besides nothing; or to targets of the message's own."""

    sends = (X,)

    def __init__(self, back: Any = None, on: Any = None, to: Any = None, to_on: Any = None) -> None:
        self.targets, self.forward_targets, self.to, self.to_on = back, on, to, to_on

    def forward(self, node: propc.NodeView, message: Message) -> Any:
        node.memory.heard = message.get("x", ())
        return Message(x=node.name).to(self.to_on)

    def backward(self, node: propc.NodeView, message: Message) -> Any:
        node.memory.heard_back = message.get("x", ())
        return Message(x=node.name).to(self.to)


class Listener(propc.Propagator):
    sends = (X,)

    def forward(self, node: propc.NodeView, message: Message) -> None:
        node.memory.heard = message.get("x", ())

    def backward(self, node: propc.NodeView, message: Message) -> None:
        node.memory.heard_back = message.get("x", ())


PARENTS_OF = {"a0": [], "a1": ["a0"], "b0": ["a1"], "b1": ["a1"], "c": ["b0", "b1"], "d": ["c"]}


def network(speaker: str, rule: propc.Propagator, **options: Any) -> propc.Network:
    """A diamond between two rows: a0 - a1 - (b0, b1) - c - d, in which one node speaks."""
    made = propc.Network(**options)
    for name, parents in PARENTS_OF.items():
        made.add(name, rule if name == speaker else Listener(), parents)
    return made


def reached(speaker: str, rule: propc.Propagator, direction: str = "backward", **options: Any) -> list[str]:
    """Who has heard it, in program order."""
    heard = "heard" if direction == "forward" else "heard_back"
    found = network(speaker, rule, **options).propagate(direction)
    others = (name for name in PARENTS_OF if name != speaker)
    return [name for name in others if speaker in getattr(found[name].memory, heard, ())]


@pytest.mark.parametrize(
    ("target", "ends"),
    [
        (None, ["b0", "b1"]),  # the default: parents
        (PARENTS, ["b0", "b1"]),
        ("a1", ["a1"]),  # a name
        ("b*", ["b0", "b1"]),  # a pattern
        ("[ac]?", ["a0", "a1"]),  # a pattern, of which only nodes ahead count
        ("*", ["a0", "a1", "b0", "b1"]),
        (1, ["b1"]),  # relative positions, in program order
        (2, ["b0"]),
        (4, ["a0"]),
        (Kind.NODE, ["a0", "a1", "b0", "b1"]),  # a kind
        (["a0", "b1"], ["a0", "b1"]),  # several
        (("b1", 1, PARENTS), ["b0", "b1"]),  # each once
        ([["a0"], ("b?",)], ["a0", "b0", "b1"]),
    ],
    ids=str,
)
def test_backward_from_c(target: Any, ends: list[str]) -> None:
    assert reached("c", Speaker(back=target)) == ends


@pytest.mark.parametrize(
    ("target", "ends"),
    [
        (None, ["b0", "b1"]),
        (CHILDREN, ["b0", "b1"]),
        ("d", ["d"]),
        ("b*", ["b0", "b1"]),
        ("*", ["b0", "b1", "c", "d"]),
        (1, ["b0"]),
        (4, ["d"]),
        (Kind.NODE, ["b0", "b1", "c", "d"]),
        (["c", "b1"], ["b1", "c"]),
    ],
    ids=str,
)
def test_forward_from_a1(target: Any, ends: list[str]) -> None:
    assert reached("a1", Speaker(on=target), "forward") == ends


def test_a_message_with_a_target_of_its_own() -> None:
    """It comes before the propagator's targets, and must be among them or next to the sender."""
    assert reached("c", Speaker(back=["a*", "b0"], to="a0")) == ["a0"]
    assert reached("c", Speaker(back="a0", to=PARENTS)) == ["b0", "b1"]
    assert reached("c", Speaker(to="b1")) == ["b1"]
    assert reached("a1", Speaker(to_on="b1"), "forward") == ["b1"]
    assert reached("a1", Speaker(on=["d", "c"], to_on=CHILDREN), "forward") == ["b0", "b1"]


def test_a_message_for_whom_no_route_is_planned() -> None:
    words = (
        r"node 'c' \(.*\): its message is for 'a0', to which no route is planned. Name it in the propagator's targets"
    )
    with pytest.raises(MessageError, match=words):
        reached("c", Speaker(to="a0"))


def test_a_target_ends_where_the_message_arrives() -> None:
    """Who hands the message on sends it to targets of its own."""
    made = propc.Network()
    made.add("a", Speaker(to_on="b"))
    made.add("b", propc.propagators.Scale(), ["a"])
    made.add("c", Listener(), ["b"])
    assert made.propagate("forward")["c"].memory.heard == ("a",)


@dataclass(frozen=True)
class ForceTargets(Pass):
    """Sends everything of some nodes elsewhere."""

    name: ClassVar[str] = "force"
    after: ClassVar[str] = "drop-idle"
    where: tuple[tuple[str, Any], ...] = ()

    def apply(self, graph: propc.PropagationGraph) -> propc.PropagationGraph:
        changed = []
        for name, target in self.where:
            node = graph[name]
            assert isinstance(node, (Named, propc.ir.Cost))
            changed.append(replace(node, forced=target))
        return graph.with_nodes(*changed)


@pytest.mark.parametrize("to", [None, "a0", "b1", PARENTS])
@pytest.mark.parametrize("back", [None, "a0", ["a0", "b1"]])
def test_a_forced_target_comes_first(back: Any, to: Any) -> None:
    assert reached("c", Speaker(back=back, to=to), passes=[ForceTargets((("c", "a1"),))]) == ["a1"]


def test_a_forced_target_says_nothing_of_the_forward_pass() -> None:
    assert reached("c", Speaker(), "forward", passes=[ForceTargets((("c", "a1"),))]) == ["d"]


@pytest.mark.parametrize("force", [None, SELF])
def test_messages_to_self_are_kept_whatever_is_forced(force: Any) -> None:
    class Counter(propc.Propagator):
        keeps = (Field("count"),)

        def backward(self, node: propc.NodeView, message: Message) -> Message:
            return Message(count=1).to(SELF)

        def forward(self, node: propc.NodeView, message: Message) -> Message:
            node.memory.count = message.get("count", 0)
            return message

    made = propc.Network(passes=[] if force is None else [ForceTargets((("b", force),))])
    made.add("a", Listener())
    made.add("b", Counter(), ["a"])
    assert [made.propagate("backward")["b"].memory.count for _ in range(3)] == [0, 1, 1]


def test_self_among_the_declared_targets() -> None:
    class Echo(Listener):
        keeps = (X,)
        targets = (SELF, PARENTS)

        def backward(self, node: propc.NodeView, message: Message) -> Message:
            return Message(x=(*node.memory.heard, node.name))

    made = propc.Network()
    made.add("a", Listener())
    made.add("b", Echo(), ["a"])
    lengths = []
    for _ in range(3):
        found = made.propagate("backward")
        lengths.append(len(found["a"].memory.heard_back))
        assert not found.messages
    assert lengths == [1, 2, 3]


def test_with_targets() -> None:
    for rule in (Speaker(), propc.propagators.Sequence(Speaker(), propc.propagators.Scale())):
        assert reached("c", rule) == ["b0", "b1"]
        assert reached("c", rule.with_targets("a0")) == ["a0"]
        assert reached("c", rule) == ["b0", "b1"]  # which has not changed


def test_targets_stay_when_options_change() -> None:
    rule = propc.propagators.Scale(2.0).with_targets("a0")
    assert rule.configure(factor=3.0).targets == "a0"
    assert rule.configure(factor=3.0).factor == 3.0
    sequence = propc.propagators.Sequence(Speaker(), scale="scale").with_targets("a0")
    assert sequence.configure(scale=None).targets == "a0"
    assert propc.propagators.Skip(over=1).with_targets("a0").targets == "a0"


def test_the_first_targets_of_a_sequence() -> None:
    sequence = propc.propagators.Sequence
    assert reached("c", sequence(Speaker(), Speaker(back="a0"), Speaker(back="a1"))) == ["a0"]
    assert reached("a1", sequence(Speaker(on="c"), Speaker(on="d"), Speaker()), "forward") == ["d"]


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("e", r"backward route leads nowhere: e matches no node ahead"),
        ("z*", r"backward route leads nowhere: z\* matches no node ahead"),
        ("d", r"backward route to 'd' is a cycle: 'd' comes after it in the program"),
        ("d*", r"leads nowhere: d\* matches no node ahead"),
        ("c", r"sends to itself, which is a cycle. Send to SELF"),
        (CHILDREN, r"backward route to 'd' is a cycle"),
        (5, r"leads nowhere: there is no node 5 message nodes further"),
        (0, r"there is no node 0 message nodes further"),
        (-1, r"there is no node -1 message nodes further"),
        (Kind.SITE, r"leads nowhere: Kind.SITE matches no node ahead|leads nowhere: site matches no node ahead"),
        (True, r"True is no target. Use a name, a pattern"),
        (1.5, r"1.5 is no target"),
        (["a0", "nobody"], r"leads nowhere: nobody matches no node"),
    ],
    ids=str,
)
def test_bad_targets(target: Any, words: str) -> None:
    with pytest.raises(MessageError, match=rf"node 'c'.*({words})"):
        assert network("c", Speaker(back=target)).graph


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("a0", r"forward route to 'a0' is a cycle: 'a0' comes before it in the program"),
        (PARENTS, r"forward route to 'a0' is a cycle"),
        ("a*", r"forward route leads nowhere: a\* matches no node ahead"),
        (5, r"leads nowhere: there is no node 5"),
    ],
    ids=str,
)
def test_bad_forward_targets(target: Any, words: str) -> None:
    with pytest.raises(MessageError, match=rf"node 'a1'.*{words}"):
        assert network("a1", Speaker(on=target)).graph


def test_a_misspelt_target_names_the_nearest() -> None:
    made = propc.Network()
    made.add("encoder", Listener())
    made.add("decoder", Speaker(back="encodr"), ["encoder"])
    with pytest.raises(MessageError, match=r"Did you mean 'encoder'"):
        assert made.graph


# -- in a compiled program ---------------------------------------------------------------


def program(theta: Tensor, to: Any) -> Tensor:
    h = propc.node(theta.expand(4) * 2, "h", propagator=Listener())
    plain = propc.node(h + 1, "plain")
    x = propc.sample(Normal(plain, 1.0), "x")
    y = propc.node(x * h, "y", propagator=Listener())
    return propc.cost(propc.node(y.square(), "z", propagator=Speaker(back=to)), "c")


def routes(to: Any) -> list[str]:
    """Ends of the planned route of z."""
    graph = propc.compile(program, estimator="rp").graph(torch.tensor(0.5, requires_grad=True), to)
    return [str(t) for r in graph.routes if (r.source, r.kind) == ("z", "message") for t in r.targets]


@pytest.mark.parametrize(
    ("target", "ends"),
    [
        (None, ["y"]),
        ("h", ["h"]),
        ("plain", ["plain"]),  # a node without a propagator
        ("x", ["x"]),  # a site
        (Kind.SITE, ["x"]),
        (Kind.NODE, ["h", "plain", "y"]),
        ("theta", ["input.theta"]),  # an argument, by its path
        (Kind.INPUT, ["input.theta"]),
        (2, ["h"]),  # of those with propagators
    ],
    ids=str,
)
def test_in_a_program(target: Any, ends: list[str]) -> None:
    assert routes(target) == ends


def test_a_name_comes_before_a_path() -> None:
    def twice(h: Tensor) -> Tensor:
        inner = propc.node(h.expand(4) * 2, "h", propagator=Listener())
        return propc.cost(propc.node(inner.square(), "z", propagator=Speaker(back="h")), "c")

    graph = propc.compile(twice).graph(torch.tensor(0.5, requires_grad=True))
    assert [str(t) for r in graph.routes if r.source == "z" and r.kind == "message" for t in r.targets] == ["h"]


def test_what_is_sent_to_an_argument_is_handed_back() -> None:
    theta = torch.tensor(0.5, requires_grad=True)
    found = propc.compile(program, estimator="rp").propagate("backward", None, theta, "theta")
    assert found.messages["theta"].x == ("z",)
    with pytest.raises(MessageError, match=r"node 'z' \(test_targets.py:\d+\).*thet matches no node.*Did you mean"):
        routes("thet")
