"""`propc.scan`: one node for many steps, with the numbers of the unrolled loop."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.distributions import Bernoulli, Independent, MultivariateNormal, Normal

import propc
from propc.errors import EstimatorError, GraphError, PropcTypeError, PropcValueError, ScanError
from propc.ir import Scan
from propc.passes import Checkpoint

BATCH = 6
LENGTH = 17  # longer than what is traced of a scan at first, shorter than what is traced at last
WEIGHTS = torch.linspace(0.5, 1.5, BATCH, dtype=torch.float64)

State = tuple[Tensor, ...]
Step = Callable[[Tensor, State, Callable[[str], str]], State]
Returned = Callable[[Tensor, State], Any]


# -- programs: a step of a loop, whose names are made by `name` ---------------------------


def walk(theta: Tensor, state: State, name: Callable[[str], str]) -> State:
    """A cost at every step, added up in the state."""
    x, total = state
    x = propc.sample(Normal(torch.sin(theta[0] * x + theta[1]), 0.3), name("x"))
    return x, total + (x - theta[2]).square()


def late(theta: Tensor, state: State, name: Callable[[str], str]) -> State:
    """Costs that see the draws of earlier steps only."""
    x, total = state
    total = total + (x - theta[2]).square()
    return propc.sample(Normal(torch.sin(theta[0] * x + theta[1]), 0.3), name("x")), total


def window(theta: Tensor, state: State, name: Callable[[str], str]) -> State:
    """Costs that see the last three draws."""
    x, y, total = state
    z = propc.sample(Normal(theta[0].expand(BATCH), 0.3), name("x"))
    return z, x, total + (x * y * z - theta[1]).square()


def apart(theta: Tensor, state: State, name: Callable[[str], str]) -> State:
    """Two chains, of which one has costs."""
    x, y, total = state
    x = propc.sample(Normal(torch.sin(theta[0] * x), 0.3), name("x"))
    y = propc.sample(Normal(torch.cos(theta[1] * y), 0.3), name("y"))
    return x, y, total + theta[2] * y.square()


def cascade(theta: Tensor, state: State, name: Callable[[str], str]) -> State:
    """A chain that drives another one, a step later."""
    x, y, total = state
    y = propc.sample(Normal(torch.cos(theta[1] * y + x), 0.3), name("y"))
    x = propc.sample(Normal(torch.sin(theta[0] * x), 0.3), name("x"))
    return x, y, total + theta[2] * y.square()


def diamond(theta: Tensor, state: State, name: Callable[[str], str]) -> State:
    """Several sites in a step, two named costs, a jump."""
    x, total = state
    a = propc.sample(Normal(torch.sin(theta[0] * x), 0.3), name("a"))
    b = propc.sample(Bernoulli(logits=theta[1] * x), name("b"))
    x = propc.sample(Normal(a * b + theta[2], 0.5), name("x"))
    return x, propc.cost(a.square(), name("first")) + total + propc.cost(x * b, name("second"))


def register(theta: Tensor, state: State, name: Callable[[str], str]) -> State:
    """Costs that see the draw of three steps before."""
    w, x, y, total = state
    z = propc.sample(Normal(theta[0].expand(BATCH), 0.3), name("x"))
    return x, y, z, total + (w - theta[1]).square()


def whole(theta: Tensor, state: State) -> Tensor:
    return state[-1]


def last(theta: Tensor, state: State) -> Tensor:
    return (state[0] - 1).square() * theta[1]


def both(theta: Tensor, state: State) -> Tensor:
    return state[-1] + last(theta, state)


def pair(theta: Tensor, state: State) -> tuple[Tensor, Tensor]:
    return state[-1] / LENGTH, last(theta, state)


PARTS = {walk: 2, late: 2, window: 3, apart: 3, cascade: 3, diamond: 2, register: 4}


def program(step: Step, end: Returned, length: int, scanned: bool) -> Callable[[Tensor], Any]:
    """The loop, or the same as a scan."""

    def zeros() -> State:
        return tuple(torch.zeros(BATCH) for _ in range(PARTS.get(step, 2)))

    def loop(theta: Tensor) -> Any:
        state = zeros()
        for index in range(length):
            state = step(theta, state, lambda name, index=index: f"{name}{index}")  # type: ignore[misc]
        return end(theta, state)

    def scan(theta: Tensor) -> Any:
        return end(theta, propc.scan(lambda state: step(theta, state, lambda name: name), zeros(), length))

    return scan if scanned else loop


def run(compiled: Any, calls: int = 2) -> tuple[list[Tensor], Tensor]:
    """What a program returns and its gradient, from one seed, at the last of some calls."""
    torch.manual_seed(1)
    theta = torch.tensor([0.5, 0.3, 0.2], requires_grad=True)
    for _ in range(calls):
        found = compiled(theta)
    costs = list(found) if isinstance(found, tuple) else [found]
    total = sum(((i + 1) * (WEIGHTS * cost).sum() for i, cost in enumerate(costs)), torch.zeros(()))
    (gradient,) = torch.autograd.grad(total, theta)
    return [cost.detach() for cost in costs], gradient


def assert_same(step: Step, end: Returned, estimator: Any, length: int = LENGTH, **options: Any) -> Scan | None:
    """The scan has the numbers of the loop; its node, if it is one."""
    theta = torch.tensor([0.5, 0.3, 0.2], requires_grad=True)
    loop = propc.compile(program(step, end, length, scanned=False), estimator=estimator)
    scan = propc.compile(program(step, end, length, scanned=True), estimator=estimator, **options)
    (costs, gradient), (others, other) = run(loop), run(scan)
    for a, b in zip(costs, others):
        torch.testing.assert_close(b, a, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(other, gradient, rtol=1e-10, atol=1e-11)
    assert gradient.abs().sum() > 0
    found = scan.graph(theta).of(Scan)
    return found[0] if found else None


@pytest.fixture(autouse=True)
def quiet(recwarn: pytest.WarningsRecorder) -> Iterator[None]:
    """Some programs have draws that nobody reads, and say so."""
    import warnings

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*reaches no cost")
        yield


# -- the numbers of the loop --------------------------------------------------------------

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


def test_a_pass_that_counts_far() -> None:
    """All steps of a scan that is not too long; an error for a longer one."""
    theta = torch.tensor([0.5, 0.3, 0.2], requires_grad=True)
    compiled = propc.compile(program(walk, both, 100, scanned=True), estimator="lr", passes=[RpAtTheEnd(30)])
    with pytest.warns(propc.PropcWarning, match="traced one by one"):
        late = [site.name for site in compiled.graph(theta).sites if site.estimator == "rp"]
    assert late == [f"x{i}" for i in range(70, 100)]
    refused(program(walk, both, 5000, scanned=True), ScanError, "by how many there are", passes=[RpAtTheEnd(30)])


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


# -- cost ---------------------------------------------------------------------------------


def test_tracing_does_not_grow() -> None:
    """The graph of a hundred thousand steps is that of twenty, and takes as long."""
    theta = torch.tensor([0.5, 0.3, 0.2], requires_grad=True)
    graphs = {n: propc.compile(program(walk, both, n, scanned=True), estimator="tp") for n in (20, 100_000)}
    short = graphs[20].graph(theta)
    start = time.perf_counter()
    long = graphs[100_000].graph(theta)
    assert time.perf_counter() - start < 1
    assert len(long) == len(short)
    assert len(long.routes) == len(short.routes)
    assert len(long.joins) == len(short.joins)
    assert long.of(Scan)[0].length == 100_000 - 7


def test_ten_thousand_steps() -> None:
    """Forward, backward, and letting go of a deep graph."""
    theta = torch.tensor([0.5, 0.3, 0.2], requires_grad=True)
    cost = propc.compile(program(walk, both, 10_000, scanned=True), estimator="lr")(theta)
    cost.mean().backward()
    assert theta.grad is not None
    assert bool(theta.grad.isfinite().all())


def kept(length: int, passes: list[Any]) -> int:
    """How many numbers autograd keeps for the reverse pass."""
    alive: set[int] = set()

    class Held:
        def __init__(self, value: Tensor) -> None:
            self.value = value
            alive.add(id(self))

        def __del__(self) -> None:
            alive.discard(id(self))

    theta = torch.tensor([0.5, 0.3, 0.2], requires_grad=True)
    compiled = propc.compile(program(walk, both, length, scanned=True), estimator="lr", passes=passes)
    compiled(theta)
    with torch.autograd.graph.saved_tensors_hooks(Held, lambda held: held.value):
        cost = compiled(theta)
    count = len(alive)
    del cost
    return count


def test_checkpoint_keeps_few_states() -> None:
    """Four times the steps: four times the values, and twice with blocks."""
    plain = kept(1600, []) / kept(400, [])
    blocks = kept(1600, [Checkpoint()]) / kept(400, [Checkpoint()])
    assert 3 < plain < 5
    assert 1.5 < blocks < 2.7


# -- what it looks like -------------------------------------------------------------------


def test_text(golden: Callable[[str, str], None]) -> None:
    graph = propc.compile(program(walk, both, 1000, scanned=True), estimator="lr")
    lines = str(graph.graph(torch.ones(3, requires_grad=True))).splitlines()
    golden("scan.txt", "\n".join(line.partition("  #")[0].rstrip() for line in lines))


@pytest.mark.parametrize("fold", [True, False])
def test_picture(fold: bool) -> None:
    """The step stands in a frame of its own, which says how often it runs."""
    graph = propc.compile(program(diamond, both, 1000, scanned=True), estimator={"b*": "lr", "*": "tp"})
    text = graph.graph(torch.ones(3, requires_grad=True)).to_dot(fold=fold)
    frame = text[text.index("subgraph cluster_scan") :].partition("}")[0]
    assert "993 times" in frame
    for name in ("a4..a996", "b4..b996", "x4..x996", "first4..first996"):
        assert f'"{name}" [' in frame
    assert '"x0" [' not in frame
    assert '"x999" [' not in frame
    assert '"x4..x996" -> "scan" [' in text


def test_names_and_explain() -> None:
    compiled = propc.compile(program(diamond, whole, 1000, scanned=True), estimator={"a*": "rp", "*": "lr"})
    theta = torch.ones(3, requires_grad=True)
    sites = [site.name for site in compiled.graph(theta).sites]
    assert sites[:3] == ["a0", "b0", "x0"]
    assert sites[-1] == "x999"
    assert "x4..x996" in sites
    rows = {row["site"]: row for row in compiled.explain(theta).rows}
    assert rows["a4..a996"]["estimator"] == "rp"
    assert rows["b4..b996"]["estimator"] == "lr"
    assert rows["b999"]["messages in"] == "second999"


def test_numbers_of_unnamed_sites() -> None:
    def step(state: Tensor) -> Tensor:
        y = propc.sample(Normal(state, 1.0))
        return propc.sample(Normal(y, 1.0))

    compiled = propc.compile(lambda theta: propc.scan(step, theta.expand(BATCH), 20).square(), estimator="lr")
    names = [site.name for site in compiled.graph(torch.tensor(1.0, requires_grad=True)).sites]
    assert names[:4] == ["scan.site0", "scan.site0.1", "scan.site1", "scan.site1.1"]
    assert "scan.site4..scan.site16" in names


def test_verify_knows_scans() -> None:
    graph = propc.compile(program(walk, both, 50, scanned=True), estimator="lr").graph(
        torch.ones(3, requires_grad=True)
    )
    (scan,) = graph.of(Scan)
    for broken, words in (
        (replace(scan, body=(*scan.body[:-1], "x0")), "does not stand right behind it"),
        (replace(scan, again=scan.inputs), "which its step does not make"),
        (replace(scan, length=0), "has 0 steps"),
    ):
        with pytest.raises(GraphError, match=words):
            graph.with_nodes(broken).verify()


# -- bad input ----------------------------------------------------------------------------


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
    assert "test_scan.py" in str(caught.value)


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

    refused(program(step, whole, 100, scanned=True), PropcValueError, "infinite|NaN", "lr")


def test_outside_a_compiled_function_it_is_a_loop() -> None:
    torch.manual_seed(5)
    found = propc.scan(lambda x: propc.sample(Normal(x, 1.0), "x"), torch.zeros(3), 4)
    torch.manual_seed(5)
    x = torch.zeros(3)
    for _ in range(4):
        x = Normal(x, 1.0).rsample()
    assert torch.equal(found, x)
    assert propc.scan(one, {"a": 1}, 0) == {"a": 1}
