"""Messages by themselves: fields, merges, tables of fields, and tensors that nobody shares."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor

import propc
from propc import Field, Message, MessageError, PropcValueError
from propc.messages import COST, GRAD, copied, field_table, merged

LINES = dict.fromkeys("abc", "model.py:1")


def arrive(merge: Any, *values: Any) -> Any:
    sent = [(f"n{i}", Message(x=value)) for i, value in enumerate(values)]
    return merged(sent, {"x": Field("x", merge)}, "end").x


def test_fields_are_read_by_name_and_by_key() -> None:
    sent = Message({"a": 1}, b=2)
    assert (sent.a, sent["b"], sent.get("c"), sent.get("c", 3)) == (1, 2, None, 3)
    assert dict(sent) == {"a": 1, "b": 2}
    assert "a" in sent
    assert "c" not in sent
    assert len(sent) == 2
    assert repr(Message(t=torch.zeros(2, 3), n=1)) == "Message(t=tensor[2, 3], n=1)"


def test_a_missing_field_names_the_nearest() -> None:
    for read in (lambda m: m.coast, lambda m: m["coast"]):
        with pytest.raises(MessageError, match=r"no field 'coast'.*Did you mean 'cost'"):
            read(Message(cost=1.0))


def test_a_message_does_not_change() -> None:
    sent = Message(a=1, b=2)
    with pytest.raises(MessageError, match=r"does not change; 'a' was assigned. Use .replace\(a=...\)"):
        sent.a = 2  # type: ignore[misc]
    assert dict(sent.replace(a=3, c=4)) == {"a": 3, "b": 2, "c": 4}
    assert dict(sent.without("a", "z")) == {"b": 2}
    assert dict(sent.only("a", "z")) == {"a": 1}
    assert dict(sent) == {"a": 1, "b": 2}


def test_a_target_goes_with_the_message() -> None:
    sent = Message(a=1, b=2).to("x")
    assert sent.target == "x"
    assert {sent.replace(a=3).target, sent.without("a").target, sent.only("a").target} == {"x"}
    assert sent.to(None).target is None
    assert Message(a=1).target is None


def test_a_message_can_be_copied_and_pickled() -> None:
    sent = Message(t=torch.ones(2), n=(1, 2))
    for again in (copy.deepcopy(sent), pickle.loads(pickle.dumps(sent))):
        assert again.t.tolist() == [1.0, 1.0]
        assert again.n == (1, 2)


def test_merge_by_sum() -> None:
    assert arrive("sum", torch.ones(2), torch.full((2,), 2.0)).tolist() == [3.0, 3.0]
    assert arrive("sum", 1, 2, 3) == 6


def test_merge_by_list_in_the_order_of_arrival() -> None:
    assert arrive("list", 3, 1, 2) == (3, 1, 2)
    assert arrive("list", 3) == (3,)


def test_lists_that_meet_are_joined() -> None:
    """So that a list that is handed on stays one list."""
    assert arrive("list", (3, 1), 2, ()) == (3, 1, 2)


def test_merge_by_replace_keeps_the_last() -> None:
    assert arrive("replace", 1, 2, 3) == 3


def test_merge_by_lock_is_an_error_that_names_both() -> None:
    assert arrive("lock", 1) == 1
    with pytest.raises(MessageError, match=r"node 'end': the field 'x' is locked, and both 'n0' and 'n1' send it"):
        arrive("lock", 1, 1)


def test_merge_by_a_function() -> None:
    assert arrive(torch.mul, torch.tensor(2.0), torch.tensor(3.0)).item() == 6.0
    assert arrive(max, 3, 7, 5) == 7


def test_fields_merge_apart() -> None:
    fields = {"a": Field("a"), "b": Field("b", "list")}
    found = merged([("p", Message(a=1)), ("q", Message(b=2)), ("r", Message(a=3, b=4))], fields, "end")
    assert dict(found) == {"a": 4, "b": (2, 4)}


def test_a_sum_of_two_shapes_names_both_senders() -> None:
    words = r"node 'end': the field 'x' arrives as \[2\] from 'n0' and as \[3\] from 'n1'.*merge by 'list'"
    with pytest.raises(MessageError, match=words):
        arrive("sum", torch.ones(2), torch.ones(3))
    with pytest.raises(MessageError, match=r"\[1, 2\] from 'n0' and as \[2\]"):  # it would broadcast
        arrive("sum", torch.ones(1, 2), torch.ones(2))
    assert [tuple(t.shape) for t in arrive("list", torch.ones(2), torch.ones(3))] == [(2,), (3,)]


def test_an_unknown_merge() -> None:
    with pytest.raises(PropcValueError, match=r"'x' merges by 'som'.*Did you mean 'sum'"):
        Field("x", "som")


@pytest.mark.parametrize("name", ["two words", "", "replace", "target", "to", "items"])
def test_names_that_no_field_can_have(name: str) -> None:
    with pytest.raises(PropcValueError, match=r"a field cannot be named"):
        Field(name)


def test_a_table_of_fields() -> None:
    mine = Field("mine", "list")
    table = field_table([("a", (GRAD, mine)), ("b", (COST, mine)), ("c", (Field("mine", "list"),))], LINES)
    assert table == {"grad": GRAD, "cost": COST, "mine": mine}


@pytest.mark.parametrize("other", [Field("x", "list"), Field("x", shape=(3,)), Field("x", max)])
def test_a_field_declared_twice_differently(other: Field) -> None:
    with pytest.raises(
        MessageError, match=r"node 'b' \(.*\): it sends the field x by .*'a' declares x by sum.*Declare a field once"
    ):
        field_table([("a", (Field("x"),)), ("b", (other,))], LINES)


def test_the_fields_of_propc_are_declared_by_propc() -> None:
    with pytest.raises(MessageError, match=r"node 'a'.*'propc' declares grad by sum"):
        field_table([("a", (Field("grad", "list"),))], LINES)


def test_a_copy_shares_nothing() -> None:
    graph = torch.ones(2, requires_grad=True) * 2  # no leaf: torch cannot deepcopy it
    sent = Message(t=graph, held=(graph, [torch.zeros(1)]), d={"k": [1]})
    other = copied(sent)
    assert other.t.tolist() == [2.0, 2.0]
    assert other.t.data_ptr() != sent.t.data_ptr()
    assert other.held[0].data_ptr() != sent.held[0].data_ptr()
    assert other.held[1][0].data_ptr() != sent.held[1][0].data_ptr()
    other.d["k"].append(2)
    assert sent.d == {"k": [1]}


X = Field("x")


class Source(propc.Propagator):
    """Sends one tensor in one message, or in several."""

    sends = (X,)

    def __init__(self, several: bool = False) -> None:
        self.several = several

    def forward(self, node: propc.NodeView, message: Message) -> Any:
        node.memory.sent = Message(x=torch.zeros(3))
        names = ("left", "right", "last")
        return [node.memory.sent.to(name) for name in names] if self.several else node.memory.sent


class WriteInto(propc.Propagator):
    """Does what it should not: writes into what it has received."""

    sends = (X,)

    def forward(self, node: propc.NodeView, message: Message) -> None:
        node.memory.seen = message.x.clone()
        message.x.add_(1.0)


@pytest.mark.parametrize("several", [False, True])
def test_what_several_receive_is_not_aliased(several: bool) -> None:
    network = propc.Network()
    network.add("source", Source(several))
    for name in ("left", "right", "last"):
        network.add(name, WriteInto(), ["source"])
    found = network.propagate("forward")
    assert [found[name].memory.seen.tolist() for name in ("left", "right", "last")] == [[0.0] * 3] * 3


def test_the_users_tensors_do_not_change() -> None:
    network = propc.Network()
    network.add("a", WriteInto())
    network.add("b", WriteInto())
    mine = torch.zeros(3)
    sent: Tensor = mine
    network.propagate("forward", Message(x=sent))
    network.propagate("forward", {"a": Message(x=sent), "b": Message(x=sent)})
    assert mine.tolist() == [0.0] * 3
