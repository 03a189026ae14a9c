"""The benchmarks: none is forgotten, and what no CI machine can time is run at least once."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import candidates
import compile_cold
import gpu
import grid
import models
import peers
import pytest
import timing
import torch
import variance_time
from step_time import Case
from torch.distributions import Distribution

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "benchmarks"
CPU = torch.device("cpu")
SCRIPTS = sorted(path.stem for path in FOLDER.glob("*.py") if "def main() -> int" in path.read_text(encoding="utf-8"))


def listed() -> set[str]:
    """What `all.py` runs; it is no name to import."""
    text = (FOLDER / "all.py").read_text(encoding="utf-8")
    return {
        name
        for group in re.findall(r"^[A-Z_]+ = \((.*?)\)$", text, re.S | re.M)
        for name in re.findall(r'"(\w+)"', group)
    }


@pytest.fixture
def eager_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is compiled."""
    monkeypatch.setattr(gpu, "usable", lambda device: ["eager"])
    monkeypatch.setattr(candidates, "by_compiler", lambda horizon, whole=True: {})
    for module in (peers, grid):
        monkeypatch.setattr(module, "BACKENDS", ("eager",))


def test_one_command_runs_every_benchmark_and_each_has_its_section() -> None:
    assert listed() == set(SCRIPTS) - {"all", "before_after"}  # these run the others
    page = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    for name in listed():
        assert f"<!-- {name} -->" in page, name
        assert f"<!-- /{name} -->" in page, name


def test_the_benchmark_for_gpus_times_every_candidate(eager_only: None) -> None:
    found = gpu.measure(Case(8, 2, 3, 2, {}), CPU)
    assert found["captured rp"].median == 1
    assert {"hand rp", "hand lr", "eager rp", "eager lr", "eager tp", "eager tp[beta]"} < set(found)


def test_a_captured_step_has_tensors_of_its_own() -> None:
    given = models.problem(8, 2, 3)
    gpu.captured(given)()
    assert given.beta.grad is None


def test_backends_by_device() -> None:
    assert gpu.usable(CPU) == ["eager", "inductor"]
    assert gpu.usable(torch.device("cuda")) == ["eager", "inductor", "cudagraphs"]


def test_bounds_on_a_gpu() -> None:
    def ratio(value: float) -> timing.Ratio:
        return timing.Ratio(value, value, value)

    case, other = Case(1000, 2, 100, 1, {}), Case(1000, 2, 10, 1, {})
    ratios = {"cudagraphs tp": ratio(1.2), "Proppo tp[beta]": ratio(20.0)}
    found = gpu.bounds([(case, ratios), (other, ratios)])
    assert [(bound.value, bound.target) for bound in found] == [(1.2, 1.5), (pytest.approx(0.06), 0.1)]
    assert gpu.bounds([(case, {"eager tp": ratio(9.0)})]) == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="it would run")
def test_without_a_gpu_it_says_what_to_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu.py"])
    with pytest.raises(SystemExit, match=r"needs a CUDA device.*by_backend\.py"):
        gpu.main()


def test_the_grid(eager_only: None) -> None:
    cell, absent = grid.Cell(8, 2, 2), grid.Cell(4, 2, 3)
    found = grid.measure(cell, timing.Clock())
    header, rows = grid.table("tp", {cell: found, absent: {}})
    assert header == ["eager tp" + (" · Proppo tp[beta]" if peers.installed("Proppo") else ""), "H=2", "H=3"]
    assert [row[0] for row in rows] == ["B=8 D=2", "B=4 D=2"]
    assert float(rows[0][1].split(" · ")[0]) == pytest.approx(found["eager tp"].median, rel=0.1)
    assert rows[0][2] == "–"
    assert "B=8 D=2 H=2" in grid.left_out([cell])


def test_peers_that_are_absent_are_said_to_be(
    eager_only: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(peers, "installed", lambda peer: False)
    monkeypatch.setattr(peers, "SMALL", ((8, 2, 2),))
    monkeypatch.setattr(sys, "argv", ["peers.py", "--small", "--check"])
    threads = torch.get_num_threads()
    try:
        assert peers.main() == 0
    finally:
        torch.set_num_threads(threads)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [line for line in lines if "not" in line] == [[peer, "not", "installed"] for peer in peers.PEERS]


def test_variances_are_of_independent_estimates() -> None:
    given = models.problem(100, 2, 3)
    draws = variance_time.gradients(candidates.by_propc("eager", ["lr"])["eager lr"], given, 5)
    assert draws.dtype == torch.float64
    assert len(set(draws.tolist())) == 5


def test_the_cost_of_an_estimator_is_its_variance_times_its_time() -> None:
    took = {10: {"inductor tp": timing.Ratio(2.0, 2.0, 2.0)}}
    found = variance_time.Variances(2.0, 10, {"rp": 4.0, "tp": 1.0})
    assert found.cost("tp", took) == 0.5


def test_growth_of_compiling() -> None:
    found = {10: [4.0, 1.0], 1000: [5.0, 2.0]}
    assert compile_cold.growth(found) == 1.25
    header, rows = compile_cold.table({"inductor tp": found, compile_cold.WHOLE: {10: [8.0, 2.0]}})
    assert header[1:] == ["H=10", "H=1000", "growth, cold"]
    assert rows == [["inductor tp", "4.0 · 1.0", "5.0 · 2.0", "1.25"], [compile_cold.WHOLE, "8.0 · 2.0", "–", "1.00"]]


def test_torch_compile_leaves_distributions_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    def careless(fn: Any, **options: Any) -> Any:
        Distribution.set_default_validate_args(False)
        return fn

    checked = Distribution._validate_args
    Distribution.set_default_validate_args(True)
    try:
        monkeypatch.setattr(torch, "compile", lambda fn, **options: lambda *given: careless(fn)(*given))
        candidates.compiled(models.direct_step)(torch.ones(()), torch.ones(3, 2), torch.ones(2, 2))
        assert Distribution._validate_args
    finally:
        Distribution.set_default_validate_args(checked)


def test_a_step_by_a_function_of_its_own_is_the_same_rollout() -> None:
    given = models.problem(5, 2, 4)
    found = []
    for step in (models.direct_step, lambda *a: models.direct_step(*a)):
        torch.manual_seed(0)
        found.append(models.direct_rp(given.beta, given.x0, given.W, 4, step=step))
    assert torch.equal(*found)


def test_a_ratio_beyond_its_slack_fails_and_so_does_no_number() -> None:
    assert not timing.Bound("", 1.9, 1.0).failed
    assert timing.Bound("", 2.1, 1.0).failed
    assert timing.Bound("", float("nan"), 1.0).failed


def test_tables_are_put_between_the_markers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- a -->\nold\n<!-- /a -->\nafter\n")
    columns = {"x": {"one": timing.Ratio(1.0, 1.0, 1.0)}, "y": {"two": timing.Ratio(2.0, 1.0, 3.0)}}
    timing.show([timing.ratio_table("head", columns)], page, "a")
    text = page.read_text()
    assert text.startswith("before")
    assert text.endswith("after\n")
    assert "old" not in text
    assert "2.00 [1.00, 3.00]" in text
    assert "2.00 [1.00, 3.00]" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="no section"):
        timing.replace_section(page, "b", "")
