"""Scans that are refused, and what is checked of their values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from scan_programs import BATCH, PARTS, State, assert_same, program, walk, whole
from torch import Tensor
from torch.distributions import Bernoulli, Normal

import propc
from propc.errors import EstimatorError, GraphError, PropcTypeError, PropcValueError, ScanError

pytestmark = pytest.mark.filterwarnings("ignore:.*reaches no cost")  # draws that nobody reads


def one(state: Any) -> Any:
    return state


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize(
    ("step", "init", "length", "kind", "words"),
    [
        (one, torch.zeros(2), -1, PropcValueError, "length is -1"),
        (one, torch.zeros(2), 2.0, PropcTypeError, "must be an integer; got float 2.0"),
        (one, torch.zeros(2), True, PropcTypeError, "must be an integer"),
        (3, torch.zeros(2), 3, PropcTypeError, "step must be a function"),
        (lambda x: x[:1], torch.zeros(2), 3, PropcValueError, r"step 0 the state was .*\[2\].* and becomes .*\[1\]"),
        (lambda x: x.double(), torch.zeros(2).float(), 3, PropcValueError, "float32.*becomes float64"),
        (lambda x: (x, x), torch.zeros(2), 3, PropcValueError, "another structure"),
        (lambda x: None, torch.zeros(2), 3, PropcValueError, "does it return the state"),
        (lambda s: (s[0], s[1] + 1), (torch.zeros(2), 0), 3, PropcValueError, r"state\[1\] was int 0 .*Carry it as a"),
        (lambda s: (s[0], s[0]), (torch.zeros(2), 0), 3, PropcValueError, "tensor from the start"),
        (lambda s: (s[0], object()), (torch.zeros(2), object()), 3, PropcValueError, "Carry tensors only"),
    ],
)
def test_bad_input(compiled: bool, step: Any, init: Any, length: Any, kind: type[Exception], words: str) -> None:
    def fn(theta: Tensor) -> Tensor:
        propc.scan(step, init, length)
        return theta.expand(2).clone()

    with pytest.raises(kind, match=words) as caught:
        (propc.compile(fn) if compiled else fn)(torch.ones((), requires_grad=True))
    assert "test_bad_scans.py" in str(caught.value)


def refused(fn: Callable[..., Any], kind: type[Exception], words: str, estimator: Any = "lr", **options: Any) -> None:
    with pytest.raises(kind, match=words):
        propc.compile(fn, estimator=estimator, **options)(torch.tensor([0.5, 0.3, 0.2], requires_grad=True))


NEEDS_NODES = {
    "past": (propc.estimator("tp", weights="past"), "keeps something for it from call to call"),
    "interval": (propc.estimator("tp", k_interval=3), "k_interval"),
    "average": (propc.estimator("lr", baseline="moving_average"), "MovingAverage keeps"),
}


@pytest.mark.parametrize(("estimator", "words"), NEEDS_NODES.values(), ids=NEEDS_NODES)
def test_what_needs_every_step(estimator: Any, words: str) -> None:
    """The numbers of the loop, as every step is traced, with a warning; an error where there are too many."""
    with pytest.warns(propc.PropcWarning, match=f"{words}.*traced one by one"):
        assert assert_same(walk, whole, estimator, length=30) is None
    refused(program(walk, whole, 5000, scanned=True), EstimatorError, f"{words}.*Python loop", estimator)


@pytest.mark.parametrize("estimator", ["local", "enumerate", "arm"])
def test_alternatives_and_enumerations(estimator: str) -> None:
    def step(theta: Tensor, state: State, name: Callable[[str], str]) -> State:
        x, total = state
        b = propc.sample(Bernoulli(logits=theta[0] * x + theta[1]), name("b"))
        return 0.5 * x + b, total + b * theta[2]

    with pytest.raises(PropcValueError):
        propc.compile(program(step, whole, 60, scanned=True), estimator=estimator)(torch.ones(3, requires_grad=True))


@pytest.mark.parametrize("pattern", ["x7", "x1*", "x[0-5]", "x?"])
def test_patterns_that_tell_steps_apart(pattern: str) -> None:
    words = "tells 'x.*' from 'x.*', and both are the same step of a long propc.scan"
    refused(program(walk, whole, 1000, scanned=True), PropcValueError, words, {pattern: "rp", "*": "lr"})


def test_functions_of_the_site() -> None:
    """Called with the names of the loop; they must not tell alike steps apart."""

    def early(view: Any) -> str:
        return "rp" if int(view.name[1:]) < 3 else "lr"

    assert_same(walk, whole, early, length=30)
    refused(
        program(walk, whole, 30, scanned=True),
        PropcValueError,
        "the function in estimator= tells",
        lambda view: "rp" if view.name == "x20" else "lr",
    )


@pytest.mark.slow
def test_steps_that_never_become_alike() -> None:
    """A state whose parts change places."""

    def swap(theta: Tensor, state: State, name: Callable[[str], str]) -> State:
        x, y, total = state
        z = propc.sample(Normal(torch.sin(theta[0] * x), 0.3), name("x"))
        return y, z, total + z.square()

    PARTS[swap] = 3
    assert_same(swap, whole, "lr", length=12)
    with pytest.warns(propc.PropcWarning, match=r"settled.*traced one by one"):
        assert assert_same(swap, whole, "lr", length=60) is None
    refused(program(swap, whole, 5000, scanned=True), ScanError, "settled.*Python loop")


def test_a_register_that_is_too_deep() -> None:
    def step(theta: Tensor, state: State, name: Callable[[str], str]) -> State:
        *parts, total = state
        return *parts[1:], propc.sample(Normal(theta[0].expand(BATCH), 1.0), name("x")), total + parts[0]

    PARTS[step] = 42
    refused(program(step, whole, 100, scanned=True), PropcValueError, "do not become alike.*Python loop")


def test_steps_that_count_or_collect() -> None:
    """A long scan traces a few steps: what they do to the outside would be wrong."""

    def collects(theta: Tensor) -> Tensor:
        seen: list[Tensor] = []

        def step(x: Tensor) -> Tensor:
            seen.append(x)
            return propc.sample(Normal(theta[0] * x, 1.0), "x")

        propc.scan(step, torch.zeros(BATCH), 30)
        return torch.stack(seen).sum(0)

    def counts(theta: Tensor) -> Tensor:
        index = 0

        def step(x: Tensor) -> Tensor:
            nonlocal index
            index += 1
            return propc.sample(Normal(theta[0] * x, 1.0), "x")

        return propc.scan(step, torch.zeros(BATCH), 30) / index

    refused(collects, PropcValueError, "changes 'seen', which it closes over")
    refused(counts, PropcValueError, "changes 'index', which it closes over")


@pytest.mark.parametrize("length", [40, 5000])
def test_values_that_leave_the_step_by_another_way(length: int) -> None:
    """All steps are traced, where these are not too many."""

    def leaks(theta: Tensor) -> Tensor:
        log: dict[str, list[Tensor]] = {"x": []}

        def step(x: Tensor) -> Tensor:
            log["x"].append(x)
            return propc.sample(Normal(theta[0] * x, 1.0), "x")

        propc.scan(step, torch.zeros(BATCH), length)
        assert len(log["x"]) <= length
        return torch.stack(log["x"]).sum(0)

    words = "behind the scan, reads a value of a step in the middle"
    if length > 1000:
        refused(leaks, PropcValueError, words)
    else:
        theta = torch.tensor([0.5, 0.3, 0.2], requires_grad=True)
        with pytest.warns(propc.PropcWarning, match=f"{words}.*traced one by one"):
            assert len(propc.compile(leaks, estimator="lr").graph(theta).sites) == length


def test_a_long_scan_inside_another() -> None:
    def nested(theta: Tensor) -> Tensor:
        def outer(x: Tensor) -> Tensor:
            return propc.scan(lambda y: propc.sample(Normal(theta[0] * y, 1.0), "x"), x, 50)

        return propc.scan(outer, torch.zeros(BATCH), 50).square()

    refused(nested, PropcValueError, "stands in a step of another long one")


@pytest.mark.slow
def test_messages_visit_every_node() -> None:
    compiled = propc.compile(program(walk, whole, 30, scanned=True), estimator="lr")
    with pytest.raises(GraphError, match=r"Python loop in place of propc\.scan"):
        compiled.propagate("backward", None, torch.ones(3, requires_grad=True))

    def step(theta: Tensor, state: State, name: Callable[[str], str]) -> State:
        x, total = walk(theta, state, name)
        return x, total + propc.cost(x.square(), name("cost"), propagator="loss")

    with pytest.warns(propc.PropcWarning, match="messages are more than cotangents.*traced one by one"):
        assert assert_same(step, whole, "lr", length=30) is None
    refused(program(step, whole, 5000, scanned=True), PropcValueError, "Python loop")


def test_rows_that_mix_are_found() -> None:
    def step(theta: Tensor, state: State, name: Callable[[str], str]) -> State:
        x, total = state
        x = propc.sample(Normal(theta[0] * (x - x.mean()), 1.0), name("x"))
        return x, total + x.square()

    refused(program(step, whole, 30, scanned=True), GraphError, "mixes samples")


def test_a_cost_that_overflows_is_found() -> None:
    def step(theta: Tensor, state: State, name: Callable[[str], str]) -> State:
        x, total = state
        x = propc.sample(Normal(theta[0] * 1e5 + x.square() * 1e5, 1.0), name("x"))
        return x, total + x.square()

    refused(program(step, whole, 100, scanned=True), PropcValueError, "infinite|NaN|rounded", "lr")


def test_outside_a_compiled_function_it_is_a_loop() -> None:
    torch.manual_seed(5)
    found = propc.scan(lambda x: propc.sample(Normal(x, 1.0), "x"), torch.zeros(3), 4)
    torch.manual_seed(5)
    x = torch.zeros(3)
    for _ in range(4):
        x = Normal(x, 1.0).rsample()
    assert torch.equal(found, x)
    assert propc.scan(one, {"a": 1}, 0) == {"a": 1}
