"""Checkpoint: where programs are cut, what is left out, and what is refused."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import showcase
import torch
import zoo
from torch import Tensor
from torch.distributions import Normal
from zoo import leaf

import propc
from propc.errors import GraphError, PropcTypeError, PropcValueError
from propc.ir import Input, Parameter
from propc.passes import Checkpoint

BATCH = 5


def long_steps(theta: Tensor, horizon: int = 9) -> Tensor:
    law = zoo.autoregression(theta, 0.1, link=lambda x: torch.tanh(x).exp().sin())
    return zoo.chain(law, theta.expand(BATCH, 400), horizon).square().sum(-1)


def graph_of(program: Any = long_steps, *passes: Any, estimator: Any = "tp", **static: Any) -> propc.PropagationGraph:
    return propc.compile(program, estimator=estimator, passes=passes).graph(leaf(), **static)


def test_golden(golden: Callable[[str, str], None]) -> None:
    compiled = propc.compile(showcase.rollout, estimator="tp", passes=[Checkpoint(blocks=3)])
    arguments = leaf(), torch.zeros(100, 4), torch.eye(4), 9
    golden("checkpoint.txt", str(compiled.graph(*arguments)))
    golden("checkpoint.explain.txt", str(compiled.explain(*arguments)))


def test_what_goes_on_in_place() -> None:
    """What is written into across segments stays outside of the blocks, at the first call too."""

    def program(theta: Tensor) -> Tensor:
        x = propc.sample(Normal(theta.expand(BATCH), 1.0), "x0")
        total = x.tanh().clone()
        for t in range(1, 6):
            x = propc.sample(Normal(x.sin(), 1.0), f"x{t}")
        total.mul_(x.sin())
        return total.exp()

    found = []
    for passes in ((), (Checkpoint(blocks=3),)):
        theta = leaf()
        torch.manual_seed(0)
        found += torch.autograd.grad(propc.compile(program, estimator="rp", passes=passes)(theta).sum(), theta)
    torch.testing.assert_close(*found)


def test_only_the_schedule_changes() -> None:
    plain = graph_of()
    made = Checkpoint().apply(plain).verify()
    assert replace(made, schedule=plain.schedule) == plain
    assert made.schedule.blocks
    assert made.schedule.forward == plain.schedule.forward
    assert Checkpoint().apply(plain).schedule == made.schedule


@pytest.mark.parametrize("choice", ["checkpoint", Checkpoint, Checkpoint()], ids=["name", "class", "object"])
def test_by_name(choice: Any) -> None:
    assert graph_of(long_steps, choice).schedule == graph_of(long_steps, Checkpoint()).schedule


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_so_many_blocks(count: int) -> None:
    """The last one is kept as it is; the others are of like size, and begin with a segment."""
    blocks = graph_of(long_steps, Checkpoint(blocks=count), horizon=20).schedule.blocks
    assert len(blocks) == count - 1
    assert all(abs(len(names) - 40 / count) <= 4 for names in blocks)
    assert all(names[0].endswith(".in") for names in blocks)


@pytest.mark.slow
def test_about_the_root_of_the_horizon() -> None:
    counts = [len(graph_of(long_steps, Checkpoint(), horizon=h).schedule.blocks) for h in (16, 64, 256)]
    assert 4 <= counts[0] <= 8
    assert all(1.6 < more / less < 2.4 for less, more in pairwise(counts))


def test_where_patterns_say() -> None:
    blocks = graph_of(long_steps, Checkpoint(at=["x2.in", "x[56].in"])).schedule.blocks
    assert [(names[0], names[-1]) for names in blocks] == [("x0.in", "x1"), ("x2.in", "x4"), ("x5.in", "x5")]
    assert graph_of(long_steps, Checkpoint(at="x2")).schedule.blocks[0][-1] == "x2.in"


def test_a_budget_leaves_as_much_as_it_allows() -> None:
    last = []
    for budget in (1e9, 6e5, 4e5):
        graph = graph_of(long_steps, Checkpoint(budget=budget), horizon=20)
        again = {name for names in graph.schedule.blocks for name in names}
        last.append(len(again))
    assert last[0] == 0 < last[1] < last[2]


def test_a_budget_that_is_too_small() -> None:
    with pytest.warns(propc.PropcWarning, match=r"budget of 1e\+03 bytes is too small: .* keep \d.* at least"):
        graph = graph_of(long_steps, Checkpoint(budget=1000))
    assert graph.schedule.blocks


def test_a_small_program_stays_whole() -> None:
    def program(theta: Tensor) -> Tensor:
        return zoo.unit_normal(theta, BATCH).square()

    assert not graph_of(program, Checkpoint()).schedule.blocks


def test_blocks_hold_no_leaves_in_front() -> None:
    held = torch.ones(40)

    def program(theta: Tensor) -> Tensor:
        return long_steps(theta * held.mean())

    graph = graph_of(program, Checkpoint(blocks=3))
    assert not any(isinstance(graph[names[0]], (Input, Parameter)) for names in graph.schedule.blocks)


# -- what must not run again ------------------------------------------------------------------


def left_out(program: Any, estimator: Any = "rp") -> set[str]:
    """The nodes in no block, where blocks are as small as can be."""
    graph = graph_of(program, Checkpoint(at="*"), estimator=estimator)
    again = {name for names in graph.schedule.blocks for name in names}
    return {node.name for node in graph if node.name not in again and not isinstance(node, (Input, Parameter))}


def test_tensors_that_are_written_into() -> None:
    """Those of other segments, through views: other writes are values. A segment may write into its own."""

    def program(theta: Tensor) -> Tensor:
        a = propc.sample(Normal(theta.expand(BATCH), 1.0), "a")
        own = (a * 2).clone()
        own += 1
        table = torch.zeros(2, BATCH)
        b = propc.sample(Normal(own, 1.0), "b")
        table.view(2, BATCH)[0] = b
        c = propc.sample(Normal(b.sin(), 1.0), "c")
        d = propc.sample(Normal(c.sin(), 1.0), "d")
        return table.sum(0) + d

    assert left_out(program) >= {"b.in", "c.in"}  # the segment that makes the table, and the one that writes into it
    assert left_out(program).isdisjoint({"a", "b", "c", "d.in"})


def test_hooks_on_tensors_of_others() -> None:
    def program(theta: Tensor) -> Tensor:
        a = propc.sample(Normal(theta.expand(BATCH), 1.0), "a")
        a.register_hook(lambda grad: grad * 2)
        b = propc.sample(Normal(a.sin(), 1.0), "b")
        return propc.sample(Normal(b.sin(), 1.0), "c")

    assert left_out(program) >= {"b.in"}


def test_generators_of_their_own() -> None:
    generator = torch.Generator()

    def program(theta: Tensor) -> Tensor:
        a = propc.sample(Normal(theta.expand(BATCH), 1.0), "a")
        b = propc.sample(Normal(a + torch.randn(BATCH, generator=generator), 1.0), "b")
        return propc.sample(Normal(b.sin(), 1.0), "c")

    assert left_out(program) & {"a", "b.in", "b", "c.in"} == {"b.in"}


class Clip(propc.Propagator):
    def backward(self, node: propc.NodeView, message: propc.Message) -> propc.Message:
        return message.replace(grad=message["grad"].clamp(-1, 1))


def test_propagators_of_the_user() -> None:
    def program(theta: Tensor) -> Tensor:
        a = propc.sample(Normal(theta.expand(BATCH), 1.0), "a")
        kept = propc.node(a * 2, "kept", propagator=Clip())
        plain = propc.node(kept.sin(), "plain")
        return propc.sample(Normal(plain, 1.0), "c")

    assert left_out(program) & {"a", "kept.in", "kept", "plain.in", "plain", "c"} == {"kept", "plain"}  # on its own


def test_where_nothing_can_run_again() -> None:
    def program(theta: Tensor) -> Tensor:
        table = torch.zeros(3, BATCH)
        for t in range(3):
            table.view(3, BATCH)[t] = (theta * table[t - 1]).sin()
            propc.node(table[t], f"n{t}", propagator=Clip())
        return table.sum(0)

    with pytest.warns(propc.PropcWarning, match=r"nothing of 'program' can run again.*written into.*torch.stack"):
        assert not graph_of(program, Checkpoint(at="*"), estimator="rp").schedule.blocks


# -- refusals ---------------------------------------------------------------------------------


def test_messages_between_propagators_are_refused() -> None:
    class Sends(propc.Propagator):
        sends = (propc.Field("extra"),)

        def backward(self, node: propc.NodeView, message: propc.Message) -> propc.Message:
            return message.replace(extra=torch.ones(()))

    def program(theta: Tensor) -> Tensor:
        a = propc.node(theta.expand(BATCH) * 2, "a", propagator=Sends())
        return propc.node(a.sin(), "b", propagator=Sends())

    with pytest.raises(GraphError, match=r"'program' has propagators whose messages.*Leave out"):
        graph_of(program, Checkpoint(), estimator="rp")


@pytest.mark.parametrize(
    ("kind", "options", "words"),
    [
        (PropcValueError, {"blocks": 0}, "blocks=0"),
        (PropcValueError, {"blocks": 2.5}, "blocks=2.5"),
        (PropcValueError, {"budget": -1}, "budget=-1"),
        (PropcValueError, {"budget": "1GB"}, "budget='1GB'"),
        (PropcTypeError, {"at": [3]}, "at="),
        (PropcValueError, {"blocks": 3, "at": "x*"}, "blocks and at.*one of them"),
    ],
)
def test_bad_options(kind: type[Exception], options: dict[str, Any], words: str) -> None:
    with pytest.raises(kind, match=words) as caught:
        Checkpoint(**options)
    assert isinstance(caught.value, propc.PropcError)


def test_a_name_that_is_none() -> None:
    with pytest.raises(PropcValueError, match=r"at='y3.in' names no node.*'x3.in'"):
        graph_of(long_steps, Checkpoint(at="y3.in"))


def test_verify_checks_blocks() -> None:
    graph = graph_of(long_steps, Checkpoint(blocks=3))
    first, second = graph.schedule.blocks
    for blocks, words in [
        ((second, first), "block 2 of the schedule is no run"),
        ((first, (first[-1], *second)), "block 2 of the schedule is no run"),
        ((first[::2],), "block 1 of the schedule is no run"),
        (((),), "block 1 of the schedule is no run"),
        ((graph.schedule.forward[-3:],), "block 1 of the schedule holds the returned values"),
    ]:
        with pytest.raises(GraphError, match=words):
            replace(graph, schedule=replace(graph.schedule, blocks=blocks)).verify()


@pytest.mark.slow
def test_compile_time_grows_with_the_horizon_alone() -> None:
    """No warning, no recursion, also with a cost at every step."""

    def program(theta: Tensor) -> Tensor:
        x, total = theta.expand(BATCH, 400), torch.zeros(BATCH)
        for t in range(150):
            x = propc.sample(Normal(theta * x, 0.1), f"x{t}")
            total = total + propc.cost(x.square().sum(-1), f"c{t}")
        return total

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(graph_of(program, Checkpoint()).schedule.blocks) > 5
