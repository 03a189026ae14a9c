"""The real compiler: what is compiled, how often, what it leaves behind, and what it says when it cannot."""

from __future__ import annotations

import gc
import multiprocessing
import os
import subprocess
import sys
import threading
from typing import Any

import pytest
import torch
import torch._functorch.config
import torch._inductor.compile_fx
import torch._inductor.config
import zoo
from agreement import assert_agree, pair, plainly, reports, step
from laws_and_estimators import BITS, B, bits, costs_on_the_way, integers, noise, rows, theta
from torch import Tensor
from torch.distributions import Normal

import propc
from propc.runtime.backends.inductor import compile_stage, inductor

pytestmark = pytest.mark.filterwarnings("ignore::propc.PropcWarning")


def autoregression(theta: Tensor, x: Tensor, horizon: int) -> Tensor:
    return zoo.chain(zoo.autoregression(theta, 0.3), x, horizon).cos().sum(-1)


@pytest.fixture
def compilations(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What is given to the compiler from now on; what the process has compiled before is forgotten."""
    seen: list[Any] = []
    real = torch._inductor.compile_fx.compile_fx_inner

    def counted(code: Any, *args: Any, **options: Any) -> Any:
        seen.append(code)
        return real(code, *args, **options)

    monkeypatch.setattr(torch._inductor.compile_fx, "compile_fx_inner", counted)
    monkeypatch.setattr(compile_stage, "_COMPILED", {})
    return seen


@pytest.mark.parametrize(
    ("program", "estimator"),
    [(bits, BITS["mixed"]), (noise, {"z": "tp", "y": "lr"}), (integers, {"k": "lr", "*": "rp"})],
    ids=["bits", "noise", "integers"],
)
def test_generated_code_agrees(program: Any, estimator: Any) -> None:
    (report,) = assert_agree(program, (theta(), rows(B)), estimator)
    assert report.stages


def test_generated_code_agrees_in_float32() -> None:
    start = theta().detach().float().requires_grad_()
    assert_agree(autoregression, (start, rows(64, dtype=torch.float32), 2), "tp")


def test_compiles_when_it_must(compilations: list[Any]) -> None:
    """Equal steps once; anew for other shapes, and not for other values, other objects or another horizon."""
    compiled = propc.compile(autoregression, estimator="tp", backend="inductor")

    def run(target: Any, batch: int, horizon: int, shift: float = 0.0) -> int:
        before = len(compilations)
        for _ in range(2):
            target(theta(), rows(batch) + shift, horizon=horizon).mean().backward()
        return len(compilations) - before

    first = run(compiled, B, 3)
    (report,) = reports(compiled)
    assert report.uses == 5  # three sites, the last segment, and the cost
    assert first == 2 * report.stages == 6  # a step, the last segment and the cost, forward and reverse
    assert run(compiled, B, 3, shift=0.5) == 0
    assert run(compiled, B, 5) == 0
    assert run(propc.compile(autoregression, estimator="tp", backend="inductor"), B, 4) == 0
    assert run(compiled.with_estimator("tp"), B, 3) == 0
    assert run(compiled, B + 2, 3) == first
    other = compiled.with_estimator("rp")
    assert run(other, B, 3) > 0
    assert run(compiled, B, 3) == run(other, B, 3) == 0


def test_settings_threads_and_processes_are_as_before() -> None:
    """Random numbers too. What torch is seen to change is watched around every test, in conftest.py."""
    compiled = propc.compile(autoregression, estimator="lr", backend="inductor")
    configs = [torch._inductor.config, torch._functorch.config, torch._dynamo.config]
    before = [config.get_config_copy() for config in configs]
    running = {thread.ident for thread in threading.enumerate()}
    children = _children()
    torch.manual_seed(3)
    compiled(theta(), rows(B + 4), horizon=2)
    after = torch.rand(())
    torch.manual_seed(3)
    propc.compile(autoregression, estimator="lr")(theta(), rows(B + 4), horizon=2)
    assert torch.rand(()) == after
    assert [config.get_config_copy() for config in configs] == before
    assert {thread.ident for thread in threading.enumerate()} == running
    assert _children() == children
    assert not multiprocessing.active_children()


def _children() -> str:
    path = f"/proc/self/task/{os.getpid()}/children"
    if not os.path.exists(path):
        return ""
    with open(path) as file:
        return file.read()


def _alive() -> int:
    gc.collect()
    return sum(type(each) in (Tensor, torch.nn.Parameter) for each in gc.get_objects())


def test_memory_does_not_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Over 1,000 steps, with and without a reverse pass; and what a step has saved goes with it."""
    compiled = propc.compile(autoregression, estimator="tp", backend="inductor")
    start, x = theta(), rows(B)
    for _ in range(3):
        compiled(start, x, horizon=2).mean().backward()
    before = _alive()
    for i in range(1000):
        costs = compiled(start, x, horizon=2)
        if i % 2:
            costs.mean().backward()
    del costs
    assert _alive() == before


def test_what_is_saved_is_freed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind the reverse pass, though the loss is alive; and with the loss, where there is none."""
    plainly(monkeypatch)
    compiled = propc.compile(autoregression, estimator="tp", backend="inductor")
    start, x = theta(), rows(B)
    for _ in range(3):
        compiled(start, x, horizon=8).mean().backward()
    saved: list[int] = []

    def packed(value: Tensor) -> Tensor:
        saved.append(1)
        kept = value.detach()
        return kept

    counts = []
    for reverse in (True, False):
        before = _alive()
        with torch.autograd.graph.saved_tensors_hooks(packed, lambda value: value):
            loss = compiled(start, x, horizon=8).mean()
        held = _alive() - before
        assert held > 8
        if reverse:
            loss.backward()
            assert _alive() - before <= 2  # the loss, and a gradient
        del loss
        counts.append(_alive() - before)
    assert saved
    assert counts == [0, 0]


def test_what_breaks_the_compiler_runs_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    plainly(monkeypatch)
    ordinary = compile_stage.compiled

    def breaks(code: Any, reverse: bool) -> Any:
        if any("tanh" in str(node.target) for node in code.graph.nodes):
            raise RuntimeError("no code for tanh\nand more")
        return ordinary(code, reverse)

    monkeypatch.setattr(inductor.compile_stage, "compiled", breaks)
    (report,) = assert_agree(costs_on_the_way, (theta(), rows(B)), "lr")
    broken = {name for name, why in report.apart if why == "RuntimeError: no code for tanh"}
    assert {"x0", "x1", "x2"} <= broken
    assert report.stages
    assert "not compiled: " in str(report)
    assert "RuntimeError: no code for tanh" in str(report)


def test_a_failing_step_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on eager: with the program's line."""
    plainly(monkeypatch)
    down: list[bool] = []

    def fails(z: Tensor) -> Tensor:
        if down:
            raise RuntimeError("simulator down")
        return z.detach()

    def program(theta: Tensor, x: Tensor) -> Tensor:
        z = propc.sample(Normal(theta * x, 1.0), "z")
        return propc.opaque(fails)(z).sum(-1) + z.sum(-1)

    said = []
    for compiled in pair(program, "lr", validate=False):
        down.clear()
        compiled(theta(), rows(B))
        compiled(theta(), rows(B))
        down.append(True)
        with pytest.raises(RuntimeError, match="simulator down") as caught:
            compiled(theta(), rows(B))
        said.append(caught.value.__notes__)
    assert said[0] == said[1]


def test_without_a_compiler() -> None:
    program = "\n".join(
        [
            "import propc, torch",
            "from torch.distributions import Normal",
            "def f(t): return propc.sample(Normal(t.expand(4), 1.0), 'x').square()",
            "t = torch.ones((), requires_grad=True)",
            "try: propc.compile(f, estimator='rp', backend='inductor')(t)",
            "except propc.PropcError as error: print(error)",
        ]
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "CXX": "/nonexistent/c++"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "backend 'inductor' needs a C++ compiler for device 'cpu', and finds none. Install g++" in done.stdout


def test_seeds_reproduce(monkeypatch: pytest.MonkeyPatch) -> None:
    plainly(monkeypatch)
    compiled = propc.compile(costs_on_the_way, estimator="tp", backend="inductor")
    inputs = theta(), rows(B)
    step(compiled, inputs, 0)
    for first, again in zip(step(compiled, inputs, 4), step(compiled, inputs, 4)):
        assert torch.equal(first, again)
