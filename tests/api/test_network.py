"""Networks built by hand: both directions, what goes in, what is left, what stays from call to call."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import nn

import propc
from propc import SELF, Field, Message, Network, Propagator, PropcTypeError, PropcValueError
from propc.propagators import NodeView

X, LOG = Field("x"), Field("log", "list")
NAMES = ("a", "b", "c")


class Add(Propagator):
    """Adds a number on the way forward, and multiplies by another on the way back."""

    sends = (X, LOG)

    def __init__(self, more: float = 1.0, times: float = 1.0) -> None:
        self.more, self.times = more, times

    def forward(self, node: NodeView, message: Message) -> Message:
        node.memory.forward = message
        return Message(x=message.get("x", 0.0) + self.more, log=node.name)

    def backward(self, node: NodeView, message: Message) -> Message:
        node.memory.backward = message
        return Message(x=message.get("x", 0.0) * self.times, log=node.name)


class Remember(Propagator):
    """Counts its calls, in a tensor, and what it heard of, in a list."""

    sends = (X,)
    keeps = (Field("count"), Field("heard", "list"))

    def forward(self, node: NodeView, message: Message) -> list[Message]:
        count = message.get("count", torch.zeros(2))
        node.memory.count, node.memory.heard = count, message.get("heard", ())
        return [message.only("x"), Message(count=count + 1, heard=(*node.memory.heard, float(count[0]))).to(SELF)]


def row(*rules: Propagator) -> Network:
    made = Network("row")
    for i, rule in enumerate(rules):
        made.add(NAMES[i], rule, NAMES[i - 1 : i] if i else [])
    return made


def diamond() -> Network:
    made = Network()
    made.add("top", Add(1.0, 2.0))
    made.add("left", Add(10.0, 3.0), ["top"])
    made.add("right", Add(100.0, 5.0), ["top"])
    made.add("end", Add(1000.0, 7.0), ["left", "right"])
    return made


def test_forward() -> None:
    found = diamond().propagate("forward", Message(x=0.5))
    assert found["top"].memory.forward.x == 0.5
    assert found["left"].memory.forward.x == found["right"].memory.forward.x == 1.5
    assert found["end"].memory.forward.x == 11.5 + 101.5
    assert found["end"].memory.forward.log == ("left", "right")
    assert {name: dict(m) for name, m in found.messages.items()} == {"end": {"x": 1113.0, "log": ("end",)}}
    assert found.value is None


def test_backward_goes_forward_first() -> None:
    found = diamond().propagate("backward", Message(x=1.0))
    assert found["end"].memory.forward.x == 11.0 + 101.0
    assert found["end"].memory.backward.x == 1.0
    assert found["left"].memory.backward.x == found["right"].memory.backward.x == 7.0
    assert found["top"].memory.backward.x == 7.0 * 3 + 7.0 * 5
    assert found["top"].memory.backward.log == ("right", "left")  # the order of visiting
    assert {name: m.x for name, m in found.messages.items()} == {"top": 112.0}


def test_initial_messages_by_name() -> None:
    found = diamond().propagate("forward", {"left": Message(x=1.0), "end": Message(x=2.0)})
    assert found["left"].memory.forward.x == 1.0 + 1.0
    assert found["end"].memory.forward.x == (1 + 1 + 10) + 101 + 2
    back = diamond().propagate("backward", {"left": Message(x=1.0)})
    assert back["left"].memory.backward.x == 1.0
    assert back["top"].memory.backward.x == 3.0


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_one_initial_message_goes_to_all_ends(direction: str) -> None:
    made = Network()
    for name in NAMES:
        made.add(name, Add())
    found = made.propagate(direction, Message(x=1.0))
    assert sorted(found.messages) == sorted(NAMES)


def test_initial_tensors_are_each_ones_own() -> None:
    class Write(Add):
        def forward(self, node: NodeView, message: Message) -> None:
            node.memory.seen = message.x.clone()
            message.x.mul_(0.0)

    made = Network()
    for name in NAMES:
        made.add(name, Write())
    mine = torch.ones(2)
    found = made.propagate("forward", Message(x=mine))
    assert all(found[name].memory.seen.tolist() == [1.0, 1.0] for name in NAMES)
    assert mine.tolist() == [1.0, 1.0]


def test_memory_is_empty_at_the_next_call() -> None:
    class Once(Propagator):
        sends = (X,)

        def forward(self, node: NodeView, message: Message) -> Message:
            node.memory.calls = getattr(node.memory, "calls", 0) + 1
            return message

        def backward(self, node: NodeView, message: Message) -> Message:
            node.memory.calls += 10
            return message

    made = row(Once(), propc.propagators.Chain(Once(), Once()))
    for direction, calls in (("forward", 1), ("backward", 11), ("backward", 11), ("forward", 1)):
        found = made.propagate(direction)
        assert found["a"].memory.calls == calls
        assert [part.calls for part in vars(found["b"].memory).values()] == [calls, calls]


def test_two_propagations_are_the_same() -> None:
    made = diamond()
    first, second = (dict(made.propagate("backward", Message(x=1.0)).messages["top"]) for _ in range(2))
    assert first == second


def test_messages_to_self_arrive_at_the_next_call() -> None:
    made = row(Add(), Remember())
    counts, heard = [], []
    for _ in range(3):
        memory = made.propagate("forward")["b"].memory
        counts.append(memory.count.tolist())
        heard.append(memory.heard)
    assert counts == [[0.0] * 2, [1.0] * 2, [2.0] * 2]
    assert heard == [(), (0.0,), (0.0, 1.0)]


def test_what_is_kept_and_what_the_caller_sends_meet() -> None:
    """Neither replaces the other."""
    made = row(Remember())
    made.propagate("forward")
    memory = made.propagate("forward", {"a": Message(count=torch.full((2,), 5.0), heard=9.0)})["a"].memory
    assert memory.count.tolist() == [6.0, 6.0]
    assert memory.heard == (0.0, 9.0)


def test_what_is_kept_stays_until_something_else_is_sent() -> None:
    class Trace(Propagator):
        keeps = (Field("on"),)

        def forward(self, node: NodeView, message: Message) -> None:
            node.memory.on = message.get("on", 0)

        def backward(self, node: NodeView, message: Message) -> Message:
            return Message(on=node.memory.on + 1).to(SELF)

    made = row(Trace())
    directions = ("forward", "backward", "forward", "forward", "backward", "forward")
    assert [made.propagate(direction)["a"].memory.on for direction in directions] == [0, 0, 1, 1, 1, 2]


def test_an_empty_message_forgets() -> None:
    class Blink(Propagator):
        keeps = (Field("on"),)

        def forward(self, node: NodeView, message: Message) -> Message | None:
            node.memory.on = "on" in message
            return Message().to(SELF) if node.memory.on else Message(on=1).to(SELF)

    made = row(Blink())
    assert [made.propagate("forward")["a"].memory.on for _ in range(4)] == [False, True, False, True]


def test_what_is_kept_has_no_history() -> None:
    class Keep(Propagator):
        keeps = (Field("t"), Field("list", "list"))

        def forward(self, node: NodeView, message: Message) -> Message:
            node.memory.arrived = message
            made = 2 * torch.ones(1, requires_grad=True)
            return Message(t=made, list=(made, made)).to(SELF)

    made = row(Keep())
    made.propagate("forward")
    kept = made.propagate("forward")["a"].memory.arrived
    assert not any(t.requires_grad for t in (kept.t, *kept.list))


def test_what_is_kept_is_in_the_state_dict() -> None:
    made, other = row(Add(), Remember()), row(Add(), Remember())
    for _ in range(2):
        made.propagate("forward")
    other.load_state_dict(made.state_dict())
    memory = other.propagate("forward")["b"].memory
    assert (memory.count.tolist(), memory.heard) == ([2.0, 2.0], (0.0, 1.0))
    made.load_state_dict(row(Add(), Remember()).state_dict())  # that of one never used: as it was
    assert made.propagate("forward")["b"].memory.count.tolist() == [2.0, 2.0]
    other.load_state_dict(made.state_dict())  # into one that has been used
    assert other.propagate("forward")["b"].memory.count.tolist() == [3.0, 3.0]


def test_names_of_kept_fields_are_free() -> None:
    class Odd(Propagator):
        keeps = (Field("train"), Field("rest"), Field("float"))

        def forward(self, node: NodeView, message: Message) -> Message:
            node.memory.arrived = dict(message)
            return Message(train=torch.ones(1), rest=torch.ones(1), float=1).to(SELF)

    made = Network()
    made.add("with.dot", Odd())
    made.propagate("forward")
    assert set(made.propagate("forward")["with.dot"].memory.arrived) == {"train", "rest", "float"}


class Critic(Propagator):
    """Has a module of its own."""

    sends = (X,)

    def state(self, node: Any) -> nn.Module:
        return nn.Linear(1, 1)

    def forward(self, node: NodeView, message: Message) -> Message:
        assert isinstance(node.state, nn.Linear)
        node.memory.weight = node.state.weight
        return message


@pytest.mark.parametrize("name", ["critic", "critic.of.x"])
def test_a_module_of_state(name: str) -> None:
    made = Network()
    made.add(name, Critic())
    first = made.propagate("forward")[name].memory.weight
    assert made.propagate("forward")[name].memory.weight is first
    assert [p is first for p in made.parameters()].count(True) == 1
    other = Network()
    other.add(name, Critic())
    other.load_state_dict(made.state_dict())
    assert torch.equal(other.propagate("forward")[name].memory.weight, first)


def test_parts_of_a_sequence_have_state_of_their_own() -> None:
    made = Network()
    made.add("both", propc.propagators.Sequence(Critic(), propc.propagators.Chain(Critic(), Add())))
    made.propagate("forward")
    assert len(list(made.parameters())) == 4


@pytest.mark.parametrize(
    "again", [copy.deepcopy, lambda made: pickle.loads(pickle.dumps(made))], ids=["copy", "pickle"]
)
def test_copies(again: Any) -> None:
    made = row(Add(), Remember())
    made.propagate("forward")
    other = again(made)
    for _ in range(2):
        assert made.propagate("forward")["b"].memory is not None
    assert other.propagate("forward")["b"].memory.count.tolist() == [1.0, 1.0]
    assert made.propagate("forward")["b"].memory.count.tolist() == [3.0, 3.0]


def test_adding_a_node_later() -> None:
    made = row(Add(), Add())
    assert made.propagate("forward").messages["b"].x == 2.0
    made.add("c", Add(), ["b"])
    assert made.propagate("forward").messages["c"].x == 3.0


def long_row(count: int, rule: Any = Propagator) -> Network:
    made = Network()
    made.add("n0", Add())
    for i in range(1, count):
        made.add(f"n{i}", rule(), [f"n{i - 1}"])
    made.add("end", Add(), [f"n{count - 1}"])
    return made


def test_idle_nodes_in_a_row_are_left_out() -> None:
    made = long_row(50)
    assert list(made.graph.nodes) == ["n0", "end", "output"]
    found = made.propagate("backward", Message(x=1.0))
    assert found["end"].memory.forward.x == 1.0
    assert found["n0"].memory.backward.x == 1.0


def test_nodes_that_do_something_stay() -> None:
    assert len(long_row(5, propc.propagators.Pause).graph) == 7
    assert len(long_row(5, propc.propagators.Stop).graph) == 7
    assert len(long_row(5, lambda: Propagator().with_targets("n0")).graph) == 7


class Same(Propagator):
    """Hands on like an idle node, and is not taken for one."""

    sends = (X, LOG)

    @property
    def idle(self) -> bool:
        return False


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_leaving_out_idle_nodes_changes_nothing(direction: str) -> None:
    """What is handed on by two counts twice; what is handed on to the end is left there."""

    def build(idle: Any) -> Network:
        made = Network()
        made.add("first", idle())
        made.add("top", Add(1.0, 2.0), ["first"])
        made.add("i", idle(), ["top"])
        made.add("j", idle(), ["i"])
        made.add("l", idle(), ["j"])
        made.add("k", idle(), ["top"])
        made.add("end", Add(10.0, 3.0), ["l", "k", "top"])
        made.add("row", idle(), ["end"])
        made.add("stop", Add(), ["row"])
        made.add("last", idle(), ["end"])
        return made

    def told(made: Network) -> Any:
        found = made.propagate(direction, Message(x=1.0))
        heard = {n: {k: dict(v) for k, v in vars(found[n].memory).items()} for n in ("top", "end", "stop")}
        return heard, {name: dict(m) for name, m in found.messages.items()}

    assert told(build(Propagator)) == told(build(Same))
    assert len(build(Propagator).graph) < len(build(Same).graph)


def test_a_network_of_idle_nodes_hands_messages_on() -> None:
    assert row(Propagator(), Propagator(), Propagator()).propagate("forward", Message(grad=1.0)).messages["c"].grad == 1


def test_several_parents_and_passes() -> None:
    text = str(diamond().graph)
    assert "end    -> left, right  [message: x, log]" in text
    assert "top    -> left, right  [forward: x, log]" in text
    assert "[by messages]" in text


def test_bad_input() -> None:
    made = row(Add())
    with pytest.raises(PropcValueError, match=r"the name 'a' is taken. Choose another"):
        made.add("a", Add())
    with pytest.raises(PropcValueError, match=r"the name 'output' is taken"):
        made.add("output", Add())
    with pytest.raises(PropcValueError, match=r"node 'b'.*its parent 'x' is not in the network. Add parents before"):
        made.add("b", Add(), ["x"])
    with pytest.raises(PropcTypeError, match=r"parents= takes a sequence of names; got 'a'"):
        made.add("b", Add(), "a")
    with pytest.raises(PropcTypeError, match=r"a propagator is a Propagator or the name of one; got 3"):
        made.add("b", 3)  # type: ignore[arg-type]
    with pytest.raises(PropcValueError, match=r"unknown propagator 'clipp'.*Did you mean 'clip'"):
        made.add("b", "clipp")
    with pytest.raises(PropcValueError, match=r"unknown direction 'forwards'.*Did you mean 'forward'"):
        made.propagate("forwards")
    with pytest.raises(PropcValueError, match=r"no node 'z' takes messages. Known: 'a'"):
        made.propagate("forward", {"z": Message(x=1)})
    with pytest.raises(PropcValueError, match=r"no propagator visited a node 'z'"):
        made.propagate("forward")["z"]
