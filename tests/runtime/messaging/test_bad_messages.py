"""Errors of propagators and messages: each names the node, what was found, and what to do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal

import propc
from propc import Field, Message, MessageError, Network
from propc.propagators import NodeView, Propagator

BATCH = 4
PLACE = r"\(test_bad_messages.py:\d+\)"


class Send(Propagator):
    """Sends whatever it is told to."""

    def __init__(self, back: Any = None, on: Any = None, sends: tuple[Field, ...] = (), targets: Any = None) -> None:
        self.back, self.on = back, on
        self.sends, self.targets = (*Propagator.sends, *sends), targets

    def forward(self, node: NodeView, message: Message) -> Any:
        return self.on(node) if callable(self.on) else self.on

    def backward(self, node: NodeView, message: Message) -> Any:
        return self.back(message) if callable(self.back) else self.back


def network(**rules: Any) -> Network:
    """Nodes in a row, under a first one."""
    made = Network()
    made.add("top", "scale")
    before = "top"
    for name, rule in rules.items():
        made.add(name, rule, [before])
        before = name
    return made


def program(theta: Tensor, rule: Any) -> Tensor:
    h = propc.node(theta.expand(BATCH), "h", propagator=rule)
    return propc.sample(Normal(h, 1.0), "x").square()


def by_both(rule: Any, words: str, estimator: Any = "rp") -> None:
    """The error arises by `backward()` and by `propagate`."""
    theta = torch.tensor(0.3, requires_grad=True)
    compiled = propc.compile(program, estimator=estimator)
    with pytest.raises(MessageError, match=words):
        compiled(theta, rule).mean().backward()
    with pytest.raises(MessageError, match=words):
        compiled.propagate("backward", None, theta, rule)


X = Field("x")


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_an_unknown_field(direction: str) -> None:
    rule = Send(on=Message(costs=1.0)) if direction == "forward" else Send(back=Message(costs=1.0))
    words = r"node 'n'.*sends the unknown field 'costs'. Declare it in `sends`. Did you mean 'cost'"
    with pytest.raises(MessageError, match=words):
        network(n=rule).propagate(direction)


@pytest.mark.parametrize("sends", [(), (X,)], ids=["by autograd", "by messages"])
def test_an_unknown_field_in_a_program(sends: Any) -> None:
    rule = Send(back=lambda m: m.replace(gard=1.0), sends=sends)
    by_both(rule, rf"node 'h' {PLACE}: it sends the unknown field 'gard'. Declare it in `sends`. Did you mean 'grad'")


def test_an_unknown_field_from_the_caller() -> None:
    with pytest.raises(MessageError, match=r"unknown field 'y'.*Known: 'cost', 'grad', 'x'"):
        network(n=Send(sends=(X,))).propagate("forward", Message(y=1.0))


def test_what_is_no_message() -> None:
    for wrong in (3, [3], {"grad": 1.0}):
        with pytest.raises(MessageError, match=r"node 'n'.*it returned \w+. Return a propc.Message, several, or None"):
            network(n=Send(back=wrong)).propagate("backward")
    by_both(Send(back=3), rf"node 'h' {PLACE}: it returned int. Return")
    by_both(Send(back=3, sends=(X,)), rf"node 'h' {PLACE}: it returned int. Return")


def test_two_shapes_that_meet() -> None:
    made = Network()
    made.add("left", Send(on=Message(x=torch.ones(2)), sends=(X,)))
    made.add("right", Send(on=Message(x=torch.ones(3)), sends=(X,)))
    made.add("end", "scale", ["left", "right"])
    words = r"node 'end': the field 'x' arrives as \[2\] from 'left' and as \[3\] from 'right'.*merge by 'list'"
    with pytest.raises(MessageError, match=words):
        made.propagate("forward")


def test_two_shapes_that_meet_in_a_program() -> None:
    def meeting(theta: Tensor) -> Tensor:
        h = propc.node(theta.expand(BATCH), "h", propagator="scale")
        y, z = (
            propc.node(f(h), name, propagator=Send(lambda m, n=n: m.replace(x=torch.ones(n)), sends=(X,)))
            for n, name, f in ((1, "y", torch.sin), (2, "z", torch.cos))
        )
        return y + z

    theta = torch.tensor(0.3, requires_grad=True)
    words = r"node 'h': the field 'x' arrives as \[2\] from 'z' and as \[1\] from 'y', and is to be summed"
    with pytest.raises(MessageError, match=words):
        propc.compile(meeting).propagate("backward", None, theta)
    with pytest.raises(MessageError, match=words):
        propc.compile(meeting)(theta).sum().backward()


def test_two_senders_of_a_locked_field() -> None:
    locked = Field("key", "lock")
    made = Network()
    for name in ("left", "right"):
        made.add(name, Send(on=Message(key=1), sends=(locked,)))
    made.add("end", "scale", ["left", "right"])
    with pytest.raises(MessageError, match=r"node 'end': the field 'key' is locked, and both 'left' and 'right' send"):
        made.propagate("forward")
    with pytest.raises(MessageError, match=r"locked, and both 'the caller' and 'left' send it"):
        made.propagate("forward", {"end": Message(key=1), "left": Message(key=2)})


@pytest.mark.parametrize(
    ("shape", "sent", "words"),
    [
        ((3,), torch.ones(2), r"as \[2\], declared is \[3\]"),
        ((3,), torch.ones(()), r"as \[\], declared is \[3\]"),
        ((None, 2), torch.ones(5, 3), r"as \[5, 3\], declared is \[None, 2\]"),
        (("batch", 2), torch.ones(BATCH + 1, 2), r"as \[5, 2\], declared is \[batch, 2\]"),
    ],
)
def test_a_shape_that_was_not_declared(shape: Any, sent: Tensor, words: str) -> None:
    rule = Send(back=lambda m: m.replace(x=sent), sends=(Field("x", shape=shape),))
    by_both(
        rule, rf"node 'h' {PLACE}: it sends the field 'x' {words}. Send it in that shape, or change the declaration"
    )


@pytest.mark.parametrize(
    ("shape", "sent"), [((3,), (3,)), ((None, 2), (7, 2)), (("batch", 2), (BATCH, 2)), (None, (1, 2, 3)), ((), ())]
)
def test_a_shape_that_was_declared(shape: Any, sent: Any) -> None:
    rule = Send(back=lambda m: m.replace(x=torch.ones(sent)), sends=(Field("x", shape=shape),))
    theta = torch.tensor(0.3, requires_grad=True)
    assert propc.compile(program).propagate("backward", None, theta, rule).messages["h"].x.shape == sent


def test_one_field_declared_differently_is_found_when_compiled() -> None:
    made = network(a=Send(sends=(X,)), b=Send(sends=(Field("x", "list"),)))
    with pytest.raises(MessageError, match=r"node 'b' \(.*\): it sends the field x by list.*'a' declares x by sum"):
        assert made.graph


def test_a_forward_message_to_an_earlier_node() -> None:
    class Back(Send):
        forward_targets = "h"

    def late(theta: Tensor) -> Tensor:
        h = propc.node(theta.expand(BATCH), "h", propagator="scale")
        return propc.node(h * 2, "late", propagator=Back(sends=(X,)))

    words = rf"node 'late' {PLACE}: its forward route to 'h' is a cycle: 'h' comes before it.*or keep it.*with SELF"
    with pytest.raises(MessageError, match=words):
        propc.compile(late).graph(torch.tensor(0.3, requires_grad=True))


def test_a_cycle_of_two() -> None:
    made = Network()
    made.add("a", Send(targets="b", sends=(X,)))
    made.add("b", Send(targets="a", sends=(X,)), ["a"])
    with pytest.raises(
        MessageError, match=r"node 'a' \(.*\): its backward route to 'b' is a cycle: 'b' comes after it"
    ):
        assert made.graph


def test_a_message_into_a_cycle() -> None:
    """A message's own target is looked at when it is sent."""
    for target, words in (("n", "sends to itself, which is a cycle"), ("later", "is a cycle: 'later' comes after it")):
        made = network(n=Send(back=Message(x=1).to(target), sends=(X,)), later="scale")
        with pytest.raises(MessageError, match=rf"node 'n'.*{words}"):
            made.propagate("backward")


def test_keeping_what_was_not_declared() -> None:
    rule = Send(back=Message(x=1).to(propc.SELF), sends=(X,))
    with pytest.raises(
        MessageError, match=r"node 'n' \(.*\): it keeps the field 'x' for itself. Declare it in `keeps`"
    ):
        network(n=rule).propagate("backward")


@pytest.mark.parametrize("sends", [(), (X,)], ids=["by autograd", "by messages"])
@pytest.mark.parametrize(
    "change", [lambda v: v[:2], lambda v: v.float(), lambda v: 3.0], ids=["shape", "dtype", "float"]
)
def test_a_value_of_another_type(sends: Any, change: Callable[[Tensor], Any]) -> None:
    def on(node: NodeView) -> None:
        node.value = change(node.value)

    by_both(Send(on=on, sends=sends), rf"node 'h' {PLACE}: its propagator makes the value.*Keep shape and dtype")


def test_a_cotangent_of_another_shape() -> None:
    rule = Send(back=lambda m: Message(grad=m.grad[:2]), sends=(X,))
    by_both(rule, rf"node 'h' {PLACE}: it sends the cotangent 'grad' as \[2\]; the value has shape \[4\]")


def test_several_messages_in_the_middle_of_a_sequence() -> None:
    rule = propc.propagators.Sequence("scale", Send(back=[Message(x=1), Message(x=2)], sends=(X,)))
    with pytest.raises(
        propc.PropcTypeError, match=r"node 'n' \(.*\): part 'part1' returned list.*Only the last part may send"
    ):
        network(n=rule).propagate("backward")


def assert_noted(error: BaseException, words: str) -> None:
    """Errors take notes from Python 3.11 on."""
    assert not hasattr(error, "add_note") or words in "".join(getattr(error, "__notes__", []))


def test_an_error_of_the_users_says_where() -> None:
    def fail(_: Any) -> Any:
        raise ZeroDivisionError("mine")

    for direction, rule in (("forward", Send(on=fail)), ("backward", Send(back=fail))):
        with pytest.raises(ZeroDivisionError, match="mine") as caught:
            network(n=rule, m="scale").propagate(direction)
        assert_noted(caught.value, "(propc: while visiting node 'n', test_bad")
    theta = torch.tensor(0.3, requires_grad=True)
    for sends in ((), (X,)):
        with pytest.raises(ZeroDivisionError, match="mine") as caught:
            propc.compile(program)(theta, Send(back=fail, sends=sends)).mean().backward()
        assert_noted(caught.value, "(propc: while visiting node 'h', test_bad")


def test_a_merge_of_the_users_that_fails_says_where() -> None:
    made = Network()
    for name in ("left", "right"):
        made.add(name, Send(on=Message(t=name), sends=(Field("t", torch.mul),)))
    made.add("end", "scale", ["left", "right"])
    with pytest.raises(TypeError) as caught:
        made.propagate("forward")
    assert_noted(caught.value, "(propc: while visiting node 'end', test_")


def test_second_derivatives_through_a_gate() -> None:
    theta = torch.tensor(0.3, requires_grad=True)
    cost = propc.compile(program)(theta, "clip").mean()
    with pytest.raises(
        propc.EstimatorError, match=rf"node 'h' {PLACE}.*first derivatives only. Leave out create_graph"
    ):
        torch.autograd.grad(cost, theta, create_graph=True)


@pytest.mark.parametrize("given", [torch.zeros(1), {"h": 1.0}, 3])
def test_an_initial_message_that_is_none(given: Any) -> None:
    theta = torch.tensor(0.3, requires_grad=True)
    with pytest.raises(propc.PropcTypeError, match=r"begins with a message; got .* before the program's arguments"):
        propc.compile(program).propagate("backward", given, theta, "clip")
    with pytest.raises(propc.PropcTypeError, match="begins with a message"):
        network(n="scale").propagate("forward", given)


@pytest.mark.parametrize("sends", ["error", 3, (3,), propc.Field("error")], ids=str)
def test_what_is_declared_must_be_fields(sends: Any) -> None:
    rule = type("Declares", (propc.Propagator,), {"sends": sends, "backward": lambda self, node, message: message})()

    def program(theta: Tensor) -> Tensor:
        return propc.node(theta.expand(4) * 2, "a", propagator=rule).sin()

    with pytest.raises(propc.PropcTypeError, match=r"node 'a' .*Declares has sends = .*no tuple of.*propc\.Field"):
        propc.compile(program)(torch.tensor(0.3, requires_grad=True))
    with pytest.raises(propc.PropcTypeError, match=r"no tuple of fields"):
        propc.compile(lambda theta: propc.sample(Normal(theta.expand(4), 1.0), "x"), estimator=rule)


@pytest.mark.parametrize("sent", [torch.ones(4), "text", 3], ids=["tensor", "text", "number"])
def test_what_is_no_message_and_no_cotangent(sent: Any) -> None:
    returns = type("Returns", (propc.Propagator,), {"backward": lambda self, node, message: sent})()
    field = type("Gives", (propc.Propagator,), {"backward": lambda self, node, message: propc.Message(grad="text")})()
    for rule, words in ((returns, "it returned"), (field, "'grad' as str")):

        def program(theta: Tensor, rule: Any = rule) -> Tensor:
            return propc.node(theta.expand(4) * 2, "a", propagator=rule).sin()

        compiled = propc.compile(program)
        for run in (
            lambda: compiled(torch.tensor(0.3, requires_grad=True)).sum().backward(),  # noqa: B023
            lambda: compiled.propagate("backward", None, torch.tensor(0.3, requires_grad=True)),  # noqa: B023
        ):
            with pytest.raises(MessageError, match=f"node 'a' .*{words}"):
                run()
