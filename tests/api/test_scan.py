"""`propc.scan`: one node for many steps, with the numbers of the unrolled loop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scan_programs import (
    BATCH,
    LENGTH,
    PARTS,
    Returned,
    State,
    Step,
    apart,
    assert_same,
    both,
    cascade,
    diamond,
    last,
    late,
    pair,
    program,
    register,
    run,
    walk,
    whole,
    window,
)
from torch import Tensor, nn
from torch.distributions import Independent, MultivariateNormal, Normal

import propc
from propc.errors import ScanError
from propc.ir import Scan
from propc.passes import Checkpoint

pytestmark = pytest.mark.filterwarnings("ignore:.*reaches no cost")  # draws that nobody reads


TARGET = propc.estimator("tp", target="theta")
ESTIMATORS = {"rp": "rp", "lr": "lr", "tp": "tp", "mixed": {"x*": "rp", "*": "lr"}}


@pytest.mark.parametrize("estimator", ESTIMATORS.values(), ids=ESTIMATORS)
@pytest.mark.parametrize("end", [whole, last, both])
@pytest.mark.parametrize("step", [walk, late, cascade])
def test_scanned_equals_unrolled(step: Step, end: Returned, estimator: Any) -> None:
    node = assert_same(step, end, estimator)
    assert node is not None
    assert node.length >= 2


@pytest.mark.parametrize("estimator", ["rp", "lr", "tp"])
@pytest.mark.parametrize("step", [window, apart, register])
def test_parts_of_the_state(step: Step, estimator: Any) -> None:
    """Costs that see some of the draws."""
    assert assert_same(step, whole, estimator, length=30) is not None


@pytest.mark.parametrize("end", [whole, last, pair])
@pytest.mark.parametrize("estimator", ["lr", "infer", {"b*": "lr", "x*": "tp", "a*": "rp"}], ids=str)
def test_several_sites_in_a_step(estimator: Any, end: Returned) -> None:
    assert assert_same(diamond, end, estimator) is not None


OPTIONS = {
    "target": TARGET,
    "same": propc.estimator("tp", weights="same"),
    "coordinates": propc.estimator("tp", per_coordinate=True),
    "no baseline": propc.estimator("lr", baseline=None),
    "samples": propc.estimator("lr", samples=3),
    "pathwise samples": propc.estimator("rp", samples=2),
    "common noise": propc.estimator("rp", samples=2, noise="common"),
    "combine": propc.estimator("combine"),
    "shaped": "gs",
    "shaped mixture": "gs-tp",
    "shaped at the end": propc.estimator("gs", at=f"x{LENGTH - 1}"),
    "shaped at the start": propc.estimator("gs", at="x1"),
    "refitted": "gr",
}


@pytest.mark.parametrize("estimator", OPTIONS.values(), ids=OPTIONS)
def test_options(estimator: Any) -> None:
    assert_same(walk, both, estimator, length=LENGTH)


@pytest.mark.parametrize("estimator", ["gs", propc.estimator("gs", at="x1"), propc.estimator("gs", at="x38")])
def test_shaping_when_rolled(estimator: Any) -> None:
    """A node in an early step, in a late one or in all does not disturb the others."""
    step = program(walk, whole, 40, scanned=True)
    assert_same(walk, whole, estimator, length=40)
    assert propc.compile(step, estimator=estimator).graph(torch.ones(3, requires_grad=True)).of(Scan)


@pytest.mark.parametrize("length", [0, 1, 2, 3, 8, 9, 10, 11, 12, 33])
def test_every_length(length: int) -> None:
    """Short scans are the loop, and so are those that are a little longer than what is traced."""

    def end(theta: Tensor, state: State) -> Tensor:
        return both(theta, state) + theta.sum()

    assert (assert_same(walk, end, "lr", length) is not None) == (length > 8)


def test_a_step_that_ignores_its_state() -> None:
    def step(theta: Tensor, state: State, name: Callable[[str], str]) -> State:
        x = propc.sample(Normal(theta[0].expand(BATCH), 1.0), name("x"))
        return x, x.square()

    assert assert_same(step, both, "lr") is not None


def test_a_state_that_gets_its_gradient_late() -> None:
    """The initial state wants none, that of later steps does."""

    def step(theta: Tensor, state: State, name: Callable[[str], str]) -> State:
        x, total = state
        x = theta[0] * x + theta[1]  # no site: a deterministic part of the state
        y = propc.sample(Normal(x, 0.3), name("y"))
        return x, total + y.square() * x

    assert assert_same(step, both, "lr") is not None
    assert assert_same(step, both, "tp") is not None


def test_draws_that_are_not_marked() -> None:
    """They are drawn anew in each step, in the order of the loop."""

    def step(theta: Tensor, state: State, name: Callable[[str], str]) -> State:
        x, total = state
        x = propc.sample(Normal(theta[0] * x, 0.3), name("x")) + 0.1 * torch.randn(BATCH)
        return x, total + x.square()

    assert assert_same(step, both, "lr") is not None


def test_black_boxes_and_nodes() -> None:
    box = propc.opaque(lambda x: x.round())

    def step(theta: Tensor, state: State, name: Callable[[str], str]) -> State:
        x, total = state
        x = propc.node(propc.sample(Normal(theta[0] * x + 1, 0.3), name("x")), name("here"))
        return x, total + box(x * 3) * theta[1]

    assert assert_same(step, both, "lr") is not None


def test_propagators_of_nodes() -> None:
    """Those whose messages are cotangents."""

    def step(theta: Tensor, state: State, name: Callable[[str], str]) -> State:
        x, total = walk(theta, state, name)
        return propc.node(x, name("h"), propagator=propc.propagator("scale", factor=0.5)), total

    for estimator in ("rp", "tp"):
        assert assert_same(step, both, estimator) is not None


def test_writes_into_the_state() -> None:
    def step(theta: Tensor, state: State, name: Callable[[str], str]) -> State:
        x, total = state
        x = propc.sample(Normal(torch.sin(theta[0] * x), 0.3), name("x"))
        total += x.square().detach()
        return x, total

    assert_same(step, last, "rp")


@pytest.mark.slow
def test_two_scans_and_a_loop_around_one() -> None:
    """Messages of a later scan pass the sums of an earlier one."""

    def two(theta: Tensor, scanned: bool) -> Tensor:
        state: State = (torch.zeros(BATCH), torch.zeros(BATCH))
        for part in "pq":
            if scanned:
                state = propc.scan(lambda s: walk(theta, s, lambda name: part + name), state, 20)  # noqa: B023
            else:
                for i in range(20):
                    state = walk(theta, state, lambda name: f"{part}{name}{i}")  # noqa: B023
        return both(theta, state)

    for estimator in ("lr", "tp"):
        results = [run(propc.compile(lambda t, s=s: two(t, s), estimator=estimator)) for s in (False, True)]
        torch.testing.assert_close(results[0], results[1], rtol=1e-10, atol=1e-11)
    graph = propc.compile(two, estimator="lr").graph(torch.ones(3, requires_grad=True), True)
    assert [scan.name for scan in graph.of(Scan)] == ["scan", "scan1"]


@pytest.mark.slow
def test_scans_inside_scans() -> None:
    """A short one inside a long one, and a long one inside a short one."""

    def inner(theta: Tensor, state: State, length: int) -> State:
        return propc.scan(lambda s: walk(theta, s, lambda name: name), state, length)

    for outside, inside in ((12, 2), (2, 12)):

        def nested(theta: Tensor) -> Tensor:
            zeros = (torch.zeros(BATCH), torch.zeros(BATCH))
            return both(theta, propc.scan(lambda state: inner(theta, state, inside), zeros, outside))  # noqa: B023

        flat = propc.compile(program(walk, both, 24, scanned=False), estimator="lr")
        compiled = propc.compile(nested, estimator="lr")
        torch.testing.assert_close(run(compiled), run(flat), rtol=1e-10, atol=1e-11)
        graph = compiled.graph(torch.ones(3, requires_grad=True))
        assert graph.of(Scan)
        assert {"x0.0", "x0.1", "x1.0"} <= {site.name for site in graph.sites}


def test_plates_of_the_data() -> None:
    def step(theta: Tensor, state: State, name: Callable[[str], str]) -> State:
        x, total = state
        x = propc.sample(Normal(torch.sin(theta[0] * x), 0.3), name("x"))
        with propc.plate("data", dim=1):
            z = propc.sample(Normal(x.unsqueeze(1) + theta.expand(BATCH, 3), 1.0), name("z"))
            cost = propc.cost((z - 1).square(), name("cost"))
        return x, total + cost.sum(1)

    assert assert_same(step, whole, "lr") is not None


@pytest.mark.slow
def test_batches_of_vectors_and_dicts() -> None:
    """A state that is a dict, sites with event dimensions."""

    def run_it(theta: Tensor, scanned: bool) -> Tensor:
        def step(state: dict[str, Any], name: Callable[[str], str] = lambda n: n) -> dict[str, Any]:
            law = MultivariateNormal(torch.sin(state["x"] * theta), 0.1 * torch.eye(3))
            x = propc.sample(law, name("x"))
            z = propc.sample(Independent(Normal(x, theta.exp()), 1), name("z"))
            return {"x": x, "cost": state["cost"] + z.square().sum(-1), "scale": 2.0}

        state = {"x": torch.zeros(BATCH, 3), "cost": torch.zeros(BATCH), "scale": 2.0}
        if scanned:
            state = propc.scan(step, state, LENGTH)
        else:
            for i in range(LENGTH):
                state = step(state, lambda n: f"{n}{i}")  # noqa: B023
        return state["cost"] * state["scale"]

    for estimator in ("rp", "lr", "tp"):
        found = [run(propc.compile(lambda t, s=s: run_it(t, s), estimator=estimator)) for s in (False, True)]
        torch.testing.assert_close(found[0], found[1], rtol=1e-10, atol=1e-11)


class Rollout(nn.Module):
    """A scan inside a module, whose step closes over parameters."""

    def __init__(self, length: int, scanned: bool) -> None:
        super().__init__()
        self.policy = nn.Linear(2, 2)
        self.length, self.scanned = length, scanned

    def step(self, state: State, name: Callable[[str], str] = lambda n: n) -> State:
        x, total = state
        x = propc.sample(Normal(torch.tanh(self.policy(x)), 0.2), name("x"))
        return x, total + (x - 1).square().sum(-1)

    def forward(self, x: Tensor) -> Tensor:
        state: State = (x, torch.zeros(len(x)))
        if self.scanned:
            return propc.scan(self.step, state, self.length)[1]
        for i in range(self.length):
            state = self.step(state, lambda n: f"{n}{i}")  # noqa: B023
        return state[1]


@pytest.mark.parametrize("estimator", ["rp", "lr", "tp", propc.estimator("tp", target="policy.weight")], ids=str)
def test_modules(estimator: Any) -> None:
    found = []
    for scanned in (False, True):
        torch.manual_seed(2)
        module = propc.compile(Rollout(LENGTH, scanned), estimator=estimator)
        loss = module(torch.ones(BATCH, 2))
        loss.mean().backward()
        found.append([loss.detach(), *(p.grad for p in module.parameters())])
    torch.testing.assert_close(found[0], found[1], rtol=1e-10, atol=1e-11)


def test_second_derivatives() -> None:
    found = []
    for scanned in (False, True):
        torch.manual_seed(3)
        theta = torch.tensor([0.5, 0.3, 0.2], requires_grad=True)
        cost = propc.compile(program(walk, both, 12, scanned), estimator="lr")(theta).mean()
        (gradient,) = torch.autograd.grad(cost, theta, create_graph=True)
        found.append(torch.autograd.grad(gradient.square().sum(), theta)[0])
    torch.testing.assert_close(found[0], found[1])


@pytest.mark.parametrize("blocks", [None, 1, 3, 100])
@pytest.mark.parametrize("estimator", ["rp", "lr", "tp", TARGET], ids=str)
def test_checkpoint(estimator: Any, blocks: int | None) -> None:
    node = assert_same(walk, both, estimator, length=40, passes=[Checkpoint(blocks=blocks)])
    assert node is not None
    assert node.blocks == {None: 6, 1: 1, 3: 3, 100: node.length}[blocks]


def test_checkpoint_with_unmarked_draws() -> None:
    def step(theta: Tensor, state: State, name: Callable[[str], str]) -> State:
        x, total = state
        x = propc.sample(Normal(theta[0] * x, 0.3), name("x")) + 0.1 * torch.randn(BATCH)
        return x, total + x.square()

    assert assert_same(step, both, "tp", length=40, passes=[Checkpoint()]) is not None


@propc.passes.register("rp-at-the-end")
@dataclass(frozen=True)
class RpAtTheEnd(propc.passes.Pass):
    """A user's pass that tells steps apart by how many there are."""

    steps: int = 2

    def apply(self, graph: propc.PropagationGraph) -> propc.PropagationGraph:
        return graph.with_nodes(*(replace(site, requested="rp") for site in graph.sites[-self.steps :]))


@pytest.mark.parametrize("steps", [1, 3, 5, 8])
def test_passes_that_count(steps: int) -> None:
    """As many steps are traced as it takes for the last ones to be the last ones."""
    theta = torch.tensor([0.5, 0.3, 0.2], requires_grad=True)
    compiled = propc.compile(program(walk, both, 100, scanned=True), estimator="lr", passes=[RpAtTheEnd(steps)])
    late = [site.name for site in compiled.graph(theta).sites if site.estimator == "rp"]
    assert late == [f"x{i}" for i in range(100 - steps, 100)]


@pytest.mark.slow
def test_a_pass_that_counts_far() -> None:
    """All steps of a scan that is not too long; an error for a longer one."""
    theta = torch.tensor([0.5, 0.3, 0.2], requires_grad=True)
    compiled = propc.compile(program(walk, both, 100, scanned=True), estimator="lr", passes=[RpAtTheEnd(30)])
    with pytest.warns(propc.PropcWarning, match="traced one by one"):
        late = [site.name for site in compiled.graph(theta).sites if site.estimator == "rp"]
    assert late == [f"x{i}" for i in range(70, 100)]
    longer = propc.compile(program(walk, both, 5000, scanned=True), estimator="lr", passes=[RpAtTheEnd(30)])
    with pytest.raises(ScanError, match="by how many there are"):
        longer(theta)


def test_without_a_gradient() -> None:
    """Where no parameter wants a gradient nothing but draws is left."""
    for scanned in (False, True):
        torch.manual_seed(4)
        compiled = propc.compile(program(walk, both, LENGTH, scanned), estimator="lr")
        value = compiled(torch.tensor([0.5, 0.3, 0.2]))
        with torch.no_grad():
            torch.manual_seed(4)
            assert torch.equal(compiled(torch.tensor([0.5, 0.3, 0.2], requires_grad=True)), value)


# -- random steps -------------------------------------------------------------------------


@st.composite
def linear_steps(draw: st.DrawFn) -> tuple[int, tuple[Any, ...], tuple[int, ...], tuple[int, ...]]:
    """Some parts of a state, what each becomes, what costs at each step are of, and what the last one is of."""
    count = draw(st.integers(1, 3))
    parts = st.sets(st.integers(0, count - 1)).map(lambda found: tuple(sorted(found)))
    kinds = st.sampled_from(["site", "site", "sum", "same"])
    update = tuple((draw(kinds), draw(parts), draw(st.booleans())) for _ in range(count))
    return count, update, draw(parts), draw(parts)


@pytest.mark.slow
@settings(max_examples=20)
@given(linear_steps(), st.sampled_from(["rp", "lr", "tp", "mixed"]))
def test_random_steps(structure: tuple[int, Any, Any, Any], estimator: str) -> None:
    """Steps with random wiring; a few that do not become alike are traced whole."""
    count, update, costs, ends = structure

    def step(theta: Tensor, state: State, name: Callable[[str], str]) -> State:
        *old, total = state
        new: list[Tensor] = []
        for i, (kind, reads, fresh) in enumerate(update):
            given = [new[j] if fresh and j < i else old[j] for j in reads]
            mean = 0.3 * sum(given, torch.zeros(BATCH)) + theta[i]
            if kind == "site":
                new.append(propc.sample(Normal(mean, 0.3), name("xyz"[i])))
            else:
                new.append(mean if kind == "sum" else old[reads[0] if reads else i])
        return *new, total + sum((new[j] * theta[2] for j in costs), torch.zeros(BATCH)).square()

    def end(theta: Tensor, state: State) -> Tensor:
        *parts, total = state
        return total + sum((parts[j] for j in ends), torch.zeros(BATCH)).square() + theta.sum()

    PARTS[step] = count + 1
    chosen = {"mixed": lambda view: "rp" if view.name[0] == "x" else "lr"}.get(estimator, estimator)
    assert_same(step, end, chosen, length=20)
