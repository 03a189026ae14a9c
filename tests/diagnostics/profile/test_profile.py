"""Profiles: every node once, right sums, slow and large stages found, readable traces, and nothing left behind."""

from __future__ import annotations

import copy
import json
import random
import time
import warnings
from collections import Counter
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pydot
import pytest
import torch
from pictures import needs_graphviz
from showcase import Autoencoder, Tell, clusters, explored, messages, mixture, observations, rewards, rollout
from torch import Tensor, nn
from torch.distributions import Normal
from torch.profiler import ProfilerActivity

import propc
from propc.diagnostics.profile.bench import TimedStep, _by_node
from propc.diagnostics.profile.memory import CALL, memory
from propc.diagnostics.profile.node_rows import BESIDE, OVERHEAD, Part, rows
from propc.diagnostics.profile.timers import Clock, HostTimer, Interval, cost_of_a_reading, hooks, intervals, timer_of
from propc.errors import PropcValueError
from propc.ir import Input, Parameter
from propc.ir.adjacency import BACKWARD, FORWARD
from propc.runtime.backends.cudagraphs import Captured
from propc.runtime.observe import watcher
from propc.runtime.observe.watcher import BLOCK, RUN
from propc.runtime.plan import runner
from propc.util.formatting import milliseconds, size
from propc.util.stopwatch import Laps

MIXED = {"z": "lr", "k": "lr", "u": "tp", "y": "rp"}


def wanting(*shape: int) -> Tensor:
    return torch.full(shape, 0.1, requires_grad=True)


PROGRAMS: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "rollout": (propc.compile(rollout, estimator="tp"), (wanting(), torch.zeros(100, 4), torch.eye(4), 10)),
    "rewards": (propc.compile(rewards, estimator="lr"), (wanting(), torch.zeros(32), 5)),
    "mixture": (propc.compile(mixture, estimator=MIXED), (wanting(3, 3), torch.zeros(20, 3))),
    "shaping": (propc.compile(rollout, estimator="gs-tp"), (wanting(), torch.zeros(100, 4), torch.eye(4), 3)),
    "plates": (propc.compile(clusters, estimator="lr"), (wanting(3, 3), torch.zeros(20, 3))),
    "alternatives": (
        propc.compile(explored, estimator={"z": "local", "k": "enumerate", "y": "lr"}),
        (wanting(3, 3), torch.zeros(20, 3)),
    ),
    "data": (
        propc.compile(observations, estimator=propc.estimator("lr", samples=3), chunk=2),
        (wanting(5), torch.zeros(20, 5)),
    ),
    "messages": (propc.compile(messages), (wanting(3), torch.zeros(3))),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_every_node_has_a_row(name: str) -> None:
    compiled, args = PROGRAMS[name]
    found = compiled.profile(*args, repeats=1)
    run = [node.name for node in compiled.graph(*args) if not isinstance(node, (Input, Parameter))]
    assert Counter(name for row in found for name in row["nodes"]) == Counter(run)
    assert sum(row["share"] for row in found) == pytest.approx(1)
    assert found.rows[-1]["name"] == OVERHEAD
    assert [row["share"] for row in found.rows[:-1]] == sorted((row["share"] for row in found.rows[:-1]), reverse=True)
    assert all(row["forward"] > 0 for row in found.rows[:-1])
    assert any(row["reverse"] > 0 for row in found.rows[:-1])
    assert len(found) == len(found.rows)


def test_equal_steps_share_a_row() -> None:
    compiled, args = PROGRAMS["rollout"]
    found = compiled.profile(*args, repeats=2)
    stage, site = found["stage0"], found["x3"]
    assert stage["nodes"] == tuple(f"x{t}.in" for t in range(10))
    assert (stage["kind"], stage["calls"], site["kind"], site["estimator"]) == ("segment", 10, "site", "tp")
    assert site["nodes"] == tuple(f"x{t}" for t in range(10))
    parts = {part.nodes[0].name: part for part in found.parts if part.nodes}
    for key in ("forward", "reverse", "allocated", "kept"):
        assert stage[key] == pytest.approx(sum(getattr(parts[f"x{t}.in"], key) for t in range(10)))
    assert found["x3.in"] is stage


# -- time ---------------------------------------------------------------------------------

PAUSE = 0.02


class Pause(torch.autograd.Function):
    """Sleeps in one of the directions."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, ahead: float, back: float) -> Tensor:
        ctx.back = back
        time.sleep(ahead)
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        time.sleep(ctx.back)
        return grad.clone(), None, None


def lazy(theta: Tensor) -> Tensor:
    x = propc.sample(Normal(Pause.apply(theta.expand(10, 2), PAUSE, 0.0), 1.0), "x")
    y = propc.sample(Normal(Pause.apply(x, 0.0, 2 * PAUSE), 1.0), "y")
    return y.square().sum(-1)


@pytest.mark.parametrize("estimator", ["rp", "tp"])
def test_finds_the_slow_stages(estimator: str) -> None:
    found = propc.compile(lazy, estimator=estimator).profile(wanting(2), repeats=2)
    ahead, back = found["x.in"], found["y.in"]
    assert max(found, key=lambda row: row["forward"]) is ahead
    assert max(found, key=lambda row: row["reverse"]) is back
    assert ahead["forward"] >= PAUSE
    assert back["reverse"] >= 2 * PAUSE
    assert back["forward"] < PAUSE / 2
    assert ahead["reverse"] < PAUSE / 2
    for key in ("forward", "reverse"):
        whole = getattr(found, key)
        assert sum(row[key] for row in found.rows[:-1]) == pytest.approx(whole, rel=0.3)
        assert sum(row[key] for row in found) == pytest.approx(whole, rel=0.3)


def test_finds_the_slow_propagator() -> None:
    """Where messages are passed from node to node."""

    class Slow(Tell):
        def backward(self, node: propc.NodeView, message: propc.Message) -> propc.Message:
            time.sleep(PAUSE)
            return super().backward(node, message)

    @propc.compile
    def program(theta: Tensor) -> Tensor:
        h = propc.node(theta.expand(10, 2).tanh(), "h", propagator=Slow())
        return propc.node(h.exp(), "late", propagator=Tell(back=["h"])).sum(-1)

    found = program.profile(wanting(2), repeats=2)
    assert max(found, key=lambda row: row["reverse"]) is found["h"]
    assert found["h"]["reverse"] >= PAUSE > 2 * found["h"]["forward"]


def test_without_a_reverse_pass() -> None:
    compiled, args = PROGRAMS["rollout"]
    for found in (
        compiled.profile(*args, repeats=1, backward=False),
        compiled.profile(args[0].detach(), *args[1:], repeats=1),
    ):
        assert found.reverse == 0
        assert all(row["reverse"] == 0 == row["reverse_allocated"] for row in found)
        assert "reverse)" not in str(found)


@pytest.mark.slow
def test_compiling_by_pass() -> None:
    compiled = propc.compile(rewards, estimator="lr")
    theta, state = wanting(), torch.zeros(8)
    names = [name for name, _ in compiled.graphs(theta, state, horizon=3)][1:]
    found = compiled.profile(theta, state, horizon=3, repeats=1)
    assert [name for name, _ in found.compiling] == ["tracing", "cutting", *names, "building"]
    assert all(seconds >= 0 for _, seconds in found.compiling)
    assert dict(found.compiling)["tracing"] > 0
    assert found.traces == 1
    compiled(theta, state, horizon=4)
    again = compiled.profile(theta, state, horizon=3, repeats=1)
    assert again.compiling == found.compiling  # of the graph that is there, which is not compiled again
    assert again.traces == 2 == compiled.compiler.traces


def test_who_runs_from_stamp_to_stamp() -> None:
    stamps = [
        ("a", FORWARD, True, 1.0),
        ("a", FORWARD, False, 2.0),
        ("b", FORWARD, True, 2.5),
        ("b", FORWARD, False, 4.0),
        ("b", BACKWARD, True, 5.0),
        ("b", BACKWARD, False, 6.0),
        ("b", BACKWARD, True, 7.0),
        ("a", BACKWARD, True, 8.0),  # inside the other
        ("a", BACKWARD, False, 8.5),
        ("b", BACKWARD, False, 9.0),
    ]
    assert intervals(stamps) == [
        Interval("a", FORWARD, 1.0, 1.0),
        Interval("b", FORWARD, 2.5, 1.5),
        Interval("b", BACKWARD, 5.0, 3.0),
        Interval("a", BACKWARD, 8.0, 0.5),
        Interval("b", BACKWARD, 8.5, 0.5),
    ]
    assert hooks(stamps) == {"b": 2}


def test_the_cost_of_hooks_is_taken_off() -> None:
    pieces = (Interval("a", FORWARD, 0.0, 1.0), Interval("a", BACKWARD, 1.0, 3.0), Interval("b", BACKWARD, 4.0, 0.5))
    steps = [TimedStep(1.0, 3.5, pieces, {"a": 2, "b": 1})] * 2
    assert _by_node(steps, 0.2) == pytest.approx({("a", FORWARD): 1.0, ("a", BACKWARD): 2.6, ("b", BACKWARD): 0.3})
    assert 0 < cost_of_a_reading(HostTimer()) < 1e-4


def test_laps() -> None:
    laps = Laps()
    time.sleep(0.002)
    laps.lap("a")
    laps.parts([("b", 1.0), ("c", 2.0)])
    laps.lap("d")
    seconds = dict(laps.seconds)
    assert list(seconds) == ["a", "b", "c", "d"]
    assert seconds["a"] >= 0.002 > seconds["d"]


@pytest.mark.gpu
def test_on_a_gpu() -> None:
    theta = torch.zeros(4, device="cuda", requires_grad=True)
    found = propc.compile(lazy, estimator="tp").profile(theta, repeats=2)
    assert found["x.in"]["forward"] >= PAUSE / 2  # the device waits for what comes next
    assert found["x"]["kept"] > 0
    assert found.peak > 0


def test_clock_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its stamps are events of the stream, read when the device is done; hooks run beside it and cost nothing."""
    clock = iter([1.0, 1.5, 3.0])
    done: list[Any] = []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self, stream: Any) -> None:
            self.stream, self.at = stream, next(clock)

        def elapsed_time(self, other: Any) -> float:
            assert done == [device]
            return 1e3 * (other.at - self.at)

    device = torch.device("cuda", 1)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: ("stream of", device))
    monkeypatch.setattr(torch.cuda, "synchronize", done.append)
    timer = timer_of([torch.device("cpu"), device])
    stamps = [timer.now() for _ in range(3)]
    assert {stamp.stream for stamp in stamps} == {("stream of", device)}
    assert timer.seconds(stamps) == [0.0, 0.5, 2.0]
    assert cost_of_a_reading(timer) == 0.0


def test_clock_of_the_processor() -> None:
    clock = Clock(timer_of([torch.device("cpu")]))
    clock.enter("a", FORWARD)
    clock.leave("a", FORWARD)
    (_, _, begins, before), (_, _, ends, after) = clock.stamps
    assert (begins, ends) == (True, False)
    assert HostTimer().seconds([before, after]) == [0.0, after - before]


def staged(theta: Tensor) -> Tensor:
    x = theta.expand(16, 2)
    for t in range(3):
        x = propc.sample(Normal(torch.sin(x) + theta, 1.0), f"x{t}")
    return x.square().sum(-1)


@pytest.mark.slow
def test_of_a_backend() -> None:
    """What it has compiled is profiled stage by stage; it has names in the PyTorch profiler too."""
    compiled, theta = propc.compile(staged, estimator="rp", backend="inductor"), wanting(2)
    for _ in range(2):
        compiled(theta)
    before = torch.get_rng_state()
    found = compiled.profile(theta, repeats=2)
    assert torch.equal(torch.get_rng_state(), before)
    stage = found["x2"]
    assert (stage["name"], stage["kind"], stage["estimator"]) == ("stage1 + site", "segment + site", "rp")
    assert stage["nodes"] == ("x1.in", "x2.in", "x1", "x2")
    assert stage["calls"] == 2
    assert min(stage["forward"], stage["reverse"], stage["kept"]) > 0
    assert found[BESIDE[RUN]]["forward"] > 0
    run = [node.name for node in compiled.graph(theta) if not isinstance(node, (Input, Parameter))]
    assert Counter(name for row in found for name in row["nodes"]) == Counter(run)
    assert dict(found.compiling)["inductor"] > 0
    assert "together" in found.graph.to_dot()
    names = ranges(lambda: compiled(theta).mean().backward())
    theta.grad = None
    assert {"propc::stage1 + site (x2.in, x2)", "propc::stage1 + site (x2.in, x2) reverse"} < names.keys()
    torch.manual_seed(1)
    with torch.profiler.profile(activities=[ProfilerActivity.CPU]):
        watched = compiled(theta)
    torch.manual_seed(1)
    assert torch.equal(watched, compiled(theta))


def test_of_a_replay() -> None:
    """What a backend has captured as a whole is one step, called after all its nodes."""
    compiled, args = PROGRAMS["rollout"]
    executable = compiled.compiler.compiled(None, args, {}).executable
    captured = Captured.__new__(Captured)
    captured.planned = executable
    ((name, nodes),) = captured.step().heard
    assert name == "replay (x0.in … output)"
    assert [node.name for node in nodes] == list(dict.fromkeys(step.node.name for step in executable.plan))
    part = Part(name, nodes, 1.0, 2.0, 3, 2, 1)
    (row,) = rows([part])
    assert (row["name"], row["calls"], row["forward"], row["where"]) == ("replay", 1, 1.0, "")
    assert len(row["nodes"]) == len(part.nodes)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["rollout", "mixture"])
def test_of_blocks_that_run_again(name: str) -> None:
    """What runs again does so in the reverse pass, and is counted to its nodes there."""
    compiled, args = PROGRAMS[name]
    passes = [propc.passes.Checkpoint(blocks=3)]
    again = propc.compile(compiled.compiler.fn, estimator=compiled.compiler.options.estimator, passes=passes)
    again(*args)
    blocks = again.graph(*args).schedule.blocks
    assert blocks
    inside = {node for block in blocks for node in block}
    found, plain = again.profile(*args, repeats=1), compiled.profile(*args, repeats=1)
    run = [node.name for node in again.graph(*args) if not isinstance(node, (Input, Parameter))]
    assert Counter(name for row in found for name in row["nodes"]) == Counter(run)
    assert found[BESIDE[BLOCK]]["calls"] == len(blocks)
    for part in (part for part in found.parts if len(part.nodes) == 1 and part.nodes[0].name in inside):
        assert part.forward > 0
        assert part.reverse > 0
    keeps = sum(row["kept"] for row in found if row["kind"] in ("site", "segment"))
    assert keeps < sum(row["kept"] for row in plain if row["kind"] in ("site", "segment"))
    names = ranges(lambda: torch.autograd.grad(again(*args).sum(), args[0]))
    assert sum(name.startswith("propc::block (") for name in names) == 2 * len(blocks)
    node = next(node for node in again.graph(*args).sites if node.name in inside)
    assert names[f"propc::site ({node.name})"] == 1
    assert names[f"propc::site ({node.name}) reverse"] >= 1


# -- memory -------------------------------------------------------------------------------


def large(theta: Tensor) -> Tensor:
    """`kept` keeps its result, 8 bytes × 1000 × 50; `let_go` makes as much twice, and nothing of it stays."""
    kept = propc.node(theta.expand(1000, 50).exp(), "kept")
    let_go = propc.node((kept * 2 + 1).sum(-1), "let_go")
    return propc.sample(Normal(let_go, 1.0), "x")


def test_memory_known_by_construction() -> None:
    compiled, each = propc.compile(large, estimator="rp"), 8 * 1000 * 50
    found = compiled.profile(wanting(50), repeats=1)
    kept, let_go = found["kept.in"], found["let_go.in"]
    assert (kept["allocated"], kept["kept"]) == (each, each)
    assert 0 <= let_go["allocated"] - (2 * each + 8 * 1000) < 100  # numbers become tensors for a while
    assert let_go["kept"] < 100
    assert kept["reverse_allocated"] >= each  # the product with the cotangent
    assert 2 * each <= found.peak <= 4 * each + 50_000
    with torch.no_grad():
        assert compiled.profile(wanting(50), repeats=1, backward=False)["kept.in"]["kept"] == 0


def event(name: str, at: int, *children: Any, end: int = 0, ptr: int = 0, size: int = 0) -> Any:
    fields = SimpleNamespace(ptr=ptr, alloc_size=size, device="cpu")
    return SimpleNamespace(name=name, start_time_ns=at, end_time_ns=end, children=children, extra_fields=fields)


def test_memory_of_ranges() -> None:
    inside = event(
        CALL,
        0,
        event("[memory]", 1, ptr=9, size=1),
        event("propc::a", 2, event("op", 3, event("[memory]", 3, ptr=1, size=10), event("[memory]", 4, ptr=2, size=4))),
        event("propc::b", 5, event("[memory]", 6, ptr=2, size=-4), event("[memory]", 7, ptr=7, size=-99)),
        end=8,
    )
    back = event("propc::a reverse", 9, event("[memory]", 9, ptr=2, size=2), event("[memory]", 10, ptr=1, size=-10))
    found = memory([inside, back])
    assert found.allocated == {"propc::": 1, "propc::a": 14, "propc::a reverse": 2}
    assert found.kept == {"propc::": 1, "propc::a": 10, "propc::a reverse": 0}
    assert found.peak == 15


# -- showing ------------------------------------------------------------------------------


def test_as_a_table() -> None:
    compiled, args = PROGRAMS["rewards"]
    found = compiled.profile(*args, repeats=2)
    title, _, head, *runner = str(found).splitlines()
    assert title.startswith("rewards: ")
    assert title.endswith("2 repeats")
    assert head.split("  ")[0] == "stage"
    assert any(line.startswith("site by lr") and "a0..a4" in line and "showcase.py:26" in line for line in runner)
    assert runner[-1].startswith("compiled in ")
    assert "<table>" in found._repr_html_()
    with pytest.raises(PropcValueError, match=r"no row 'a9'\. Did you mean"):
        found["a9"]


def test_words() -> None:
    assert [milliseconds(s) for s in (0.0, 1e-7, 1.234e-5, 0.01234, 12.34)] == [
        "0",
        "<0.001",
        "0.0123",
        "12.3",
        "12340",
    ]
    assert [size(n) for n in (0, 800, 1536, 3 << 20, 5 << 30)] == ["0 B", "800 B", "1.5 KiB", "3 MiB", "5 GiB"]


def test_chrome_trace(tmp_path: Path) -> None:
    compiled, args = PROGRAMS["rollout"]
    found = compiled.profile(*args, repeats=1)
    path = found.chrome_trace(tmp_path / "trace.json")
    events = json.loads(Path(path).read_text())["traceEvents"]
    slices = [each for each in events if each["ph"] == "X"]
    names = {way: {each["name"] for each in slices if each["cat"] == way} for way in (FORWARD, BACKWARD, "compiling")}
    steps = {f"stage0 (x{t}.in)" for t in range(10)} | {f"site (x{t})" for t in range(10)}
    assert steps < names[FORWARD]
    assert steps < names[BACKWARD]
    assert {"tracing", "route-messages", "building"} < names["compiling"]
    assert all(each["ts"] >= 0 and each["dur"] >= 0 for each in slices)
    ahead = [each for each in slices if each["cat"] == FORWARD]
    assert all(a["ts"] + a["dur"] <= b["ts"] + 1e-3 for a, b in pairwise(ahead))
    (site,) = (each for each in ahead if each["name"] == "site (x3)")
    assert site["args"]["nodes"] == ["x3"]
    assert site["args"]["kept [B]"] > 0
    tracks = {each["args"]["name"] for each in events if each["ph"] == "M"}
    assert {"forward", "reverse", "compiling rollout"} < tracks


@pytest.mark.slow
@pytest.mark.parametrize("fold", [True, False])
def test_in_the_picture(fold: bool) -> None:
    compiled, args = PROGRAMS["rollout"]
    found = compiled.profile(*args, repeats=1)
    text = found.graph.to_dot(fold=fold)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # pydot's parser uses old names of pyparsing
        (dot,) = pydot.graph_from_dot_data(text)
    looks = {node.get_name().strip('"'): node.get_attributes() for node in dot.get_nodes()}
    assert "keeps 1.56 KiB" in looks["x0"]["label"]
    assert " ms, " in looks["x0"]["label"]
    plain = compiled.graph(*args).to_dot(fold=fold)
    assert " ms, " not in plain
    if fold:
        part = looks["x1 … x8"]["label"]
        assert part.count(" ms, ") == 1
        assert "keeps 37.5 KiB" in part  # 100 × 4 numbers of 8 sites, and twice as many of 8 segments


@needs_graphviz
def test_rendered(tmp_path: Path) -> None:
    compiled, args = PROGRAMS["rewards"]
    found = compiled.profile(*args, repeats=1)
    path = found.graph.render(tmp_path / "rewards.svg")
    assert "<svg" in Path(path).read_text()
    assert "<svg" in (found.graph._repr_svg_() or "")
    assert "<svg" in found.graph._repr_html_()


# -- nothing is left behind ---------------------------------------------------------------


def test_leaves_no_trace() -> None:
    compiled, args = propc.compile(rollout, estimator=propc.estimator("tp", weights="past")), PROGRAMS["rollout"][1]
    beta = args[0]
    for _ in range(3):
        compiled(*args).mean().backward()
    state, grad = copy.deepcopy(compiled.state_dict()), beta.grad
    assert state
    kept, numbers, plain = grad.clone(), torch.get_rng_state(), random.getstate()
    compiled.profile(*args, repeats=2)
    assert beta.grad is grad
    assert torch.equal(grad, kept)
    assert torch.equal(torch.get_rng_state(), numbers)
    assert random.getstate() == plain
    after = compiled.state_dict()
    assert after.keys() == state.keys()
    assert all(torch.equal(after[key], value) for key, value in state.items())
    assert compiled.compiler.traces == 1
    assert not watcher._WATCHERS
    beta.grad = None


def test_before_the_first_call() -> None:
    """Checks of the first call, and the state of estimators, are still to come."""
    compiled, args = propc.compile(rollout, estimator="tp"), PROGRAMS["rollout"][1]
    compiled.profile(*args, repeats=1)
    ((ready,),) = compiled.compiler.cache.values()
    assert not ready.executable.mode.checked


def test_the_profiled_graph_is_not_traced_again() -> None:
    compiled, args = PROGRAMS["rollout"]
    apart = compiled.compiler.apart(None, args, {})
    apart(None, args, {})
    ready = apart.compiled(None, args, {})
    assert apart.traces == 0
    assert ready.executable.mode.checked
    assert ready.graph is compiled.graph(*args)


@pytest.mark.slow
def test_kept_messages_and_buffers_stay() -> None:
    compiled = propc.compile(messages)
    args = PROGRAMS["messages"][1]
    compiled(*args)
    before = copy.deepcopy(compiled.state_dict())
    compiled.profile(*args, repeats=1)
    after = compiled.state_dict()
    assert all(torch.equal(after[k], v) if isinstance(v, Tensor) else after[k] == v for k, v in before.items())

    class Normed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(4)

        def forward(self, x: Tensor) -> Tensor:
            return propc.sample(Normal(self.norm(x), 1.0), "z").square().sum(-1)

    module = propc.compile(Normed(), estimator="rp")
    module.profile(torch.randn(16, 4), repeats=1)
    assert torch.equal(module.norm.running_mean, torch.zeros(4))
    assert int(module.norm.num_batches_tracked) == 0


@pytest.mark.slow
def test_of_every_compiled_object() -> None:
    theta = wanting(2)

    class Model:
        @propc.compile(estimator="rp")
        def step(self, theta: Tensor) -> Tensor:
            return propc.sample(Normal(theta.expand(10, 2), 1.0), "x").sum(-1)

    assert Model().step.profile(theta, repeats=1)["x"]["estimator"] == "rp"
    instance = propc.compile(Autoencoder(), estimator="rp")
    assert instance.profile(torch.zeros(16, 6), repeats=1).name == "Autoencoder"
    assert all(parameter.grad is None for parameter in instance.parameters())
    compiled = propc.compile(type("Own", (Autoencoder,), {}), estimator="lr")()
    assert compiled.profile(torch.zeros(16, 6), repeats=1)["z"]["estimator"] == "lr"


def test_arguments_with_a_history() -> None:
    """The reverse pass ends at the arguments, and can be taken again."""
    weight = wanting(2)
    hidden = weight.exp()
    PROGRAM = propc.compile(lambda h: propc.sample(Normal(h.expand(10, 2), 1.0), "x").sum(-1), estimator="rp")
    PROGRAM.profile(hidden, repeats=1)
    assert torch.autograd.grad(hidden.sum(), weight)[0].isfinite().all()


@pytest.mark.parametrize("repeats", [0, -1, 2.5, True, "3"])
def test_bad_repeats(repeats: Any) -> None:
    compiled, args = PROGRAMS["rollout"]
    with pytest.raises(PropcValueError, match=r"option repeats=.* must be a positive integer"):
        compiled.profile(*args, repeats=repeats)


def test_no_cost_to_start_from() -> None:
    compiled = propc.compile(lambda theta: propc.sample(Normal(theta.expand(10, 2), 1.0), "x"), estimator="rp")
    with pytest.raises(PropcValueError, match="returns no cost"):
        compiled.profile(wanting(2), repeats=1)
    assert compiled.profile(wanting(2), repeats=1, backward=False)["x"]["forward"] > 0


# -- names in the PyTorch profiler --------------------------------------------------------


def ranges(run: Any) -> Counter[str]:
    with torch.profiler.profile(activities=[ProfilerActivity.CPU]) as profiler:
        run()
    found = {each.key: each.count for each in profiler.key_averages() if each.key.startswith("propc::")}
    found.pop("propc::watching", None)
    return Counter(found)


@pytest.mark.parametrize("name", PROGRAMS)
def test_names_in_the_profiler(name: str) -> None:
    compiled, args = PROGRAMS[name]
    compiled(*args)
    found = ranges(lambda: torch.autograd.grad(compiled(*args)[0].sum(), args[0]))
    nodes = {each.rsplit("(", 1)[1].split(")")[0] for each in found}
    run = {node.name for node in compiled.graph(*args) if not isinstance(node, (Input, Parameter))}
    assert nodes == run
    backward = {each for each in found if each.endswith(" reverse")}
    assert backward
    assert {each.removesuffix(" reverse") for each in backward} < found.keys()


def test_profile_inside_a_profiler() -> None:
    compiled, args = PROGRAMS["rollout"]
    with pytest.raises(PropcValueError, match="a PyTorch profiler is active"):
        ranges(lambda: compiled.profile(*args))


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_profiler_changes_no_number(name: str) -> None:
    compiled, args = PROGRAMS[name]
    compiled(*args)
    found = []

    def step() -> None:
        state = copy.deepcopy(compiled.state_dict())
        torch.manual_seed(3)
        returned = compiled(*args)
        losses = returned if isinstance(returned, tuple) else (returned,)
        found.append(torch.autograd.grad(sum(loss.sum() for loss in losses), args[0])[0])
        compiled.load_state_dict(state)

    step()
    assert ranges(step)
    step()
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_nobody_watches_without_a_profiler(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled, args = PROGRAMS["rollout"]
    ranges(lambda: compiled(*args))
    watched: list[int] = []
    monkeypatch.setattr(runner, "watched", lambda plan: watched.append(1))
    compiled(*args).mean().backward()
    assert not watched


def test_errors_under_a_profiler_name_the_node() -> None:
    def fails(x: Tensor) -> Tensor:
        raise RuntimeError("no luck")

    calls: list[int] = []

    def box(x: Tensor) -> Tensor:
        calls.append(1)
        return fails(x) if len(calls) > 3 else x

    compiled = propc.compile(lambda theta: propc.opaque(box)(theta.expand(10, 2).exp()).sum(-1), validate=False)
    theta = torch.zeros(2)
    with pytest.raises(RuntimeError, match="no luck") as caught:
        ranges(lambda: [compiled(theta) for _ in range(5)])
    assert any("while running opaque" in note for note in caught.value.__notes__)


def test_second_derivatives_under_a_profiler() -> None:
    compiled, theta = propc.compile(lambda t: t.expand(10).pow(3), estimator="rp"), wanting()

    def step() -> None:
        (first,) = torch.autograd.grad(compiled(theta).mean(), theta, create_graph=True)
        (second,) = torch.autograd.grad(first, theta)
        assert second == pytest.approx(6 * 0.1)

    assert ranges(step)
