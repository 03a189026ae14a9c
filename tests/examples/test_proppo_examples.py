"""The reproductions of Proppo's experiments run small, and show what the paper says."""

import importlib
import json

import pytest
import torch
from example_runs import EXAMPLES, plain_gradient, run
from stats import limit


def result(example, out, *files):
    """Run a reproduction small; gives the rows behind its table."""
    run(f"proppo/{example}", out)
    for name in ("table.txt", *files):
        assert (out / name).stat().st_size > 0, name
    return json.loads((out / "results.json").read_text())


@pytest.fixture
def proppo(monkeypatch):
    """Imports a module of examples/proppo."""
    monkeypatch.syspath_prepend(EXAMPLES / "proppo")
    return importlib.import_module


def assert_exact_means(cells, *, but=()):
    """Every mean is the exact one, in standard errors."""
    unbiased = [cell for cell in cells if cell["estimator"] not in but]
    for cell in unbiased:
        assert abs(cell["mean"] - cell["exact"]) < limit(len(unbiased)) * cell["mean_stderr"], cell


@pytest.mark.statistical
def test_variance_has_an_honest_error_bar(proppo):
    """Of skewed draws, whose fourth moment is not a Normal's: of exponential ones it is 9, a Normal's 3."""
    variances = [proppo("common").Variance.of(draws) for draws in torch.empty(4000, 1000).exponential_()]
    values, stderrs = (torch.tensor([getattr(v, name) for v in variances]) for name in ("value", "stderr"))
    assert values.mean().item() == pytest.approx(1, abs=limit(1) * (8 / 1000 / 4000) ** 0.5)
    assert stderrs.square().mean().sqrt().item() == pytest.approx(values.std().item(), rel=0.1)
    of_a_normal = (2 / 999) ** 0.5
    assert of_a_normal < 0.6 * values.std().item()


@pytest.mark.statistical
@pytest.mark.parametrize("beta", [1.5, 2.5])
def test_quadrature_is_exact(proppo, beta):
    gradients = proppo("quadrature").exact_gradients(beta, [1, 3, 10])
    for horizon, exact in gradients.items():
        mean, stderr = plain_gradient(beta, horizon)
        assert abs(mean - exact) < limit(6) * stderr, horizon
        assert abs(mean - 1.05 * exact) > limit(6) * stderr, "no power"


def test_landscape(tmp_path):
    lines = {row["beta"]: row for row in result("landscape", tmp_path / "out", "landscape.png")}
    assert [lines[beta]["period"] for beta in (1.0, 1.5, 2.25)] == [1, 2, 4]
    assert lines[3.0]["period"] > 100
    for beta, row in lines.items():
        if beta != 2.5:  # there chaos begins
            assert (row["exponent with noise"] > 0) == (beta > 2.5), beta
        assert all(0 < size < float("inf") for size in row["size"].values())


@pytest.mark.statistical
def test_single_path(tmp_path):
    cells = result("single_path", tmp_path / "out", "variance.png")
    assert_exact_means(cells)
    for horizon, beta in {(cell["horizon"], cell["beta"]) for cell in cells}:
        variance = {c["estimator"]: c["variance"] for c in cells if (c["horizon"], c["beta"]) == (horizon, beta)}
        assert len(variance) == 5
        assert all(variance[name] < variance["lr"] / 10 for name in variance if name.startswith("tp"))
    assert any(cell["proppo"] for cell in cells)


@pytest.mark.statistical
def test_multi_path(tmp_path):
    out = tmp_path / "out"
    cells = result("multi_path", out, "variance.png", "graph.txt")
    assert_exact_means(cells, but=("gs", "gs-tp"))
    variance = {(cell["estimator"], cell["paths"]): cell["variance"] for cell in cells}
    growth = {name: variance[name, 16] / variance[name, 1] for name, _ in variance}
    assert growth["lr"] > 5
    for name in ("tp", "gs", "gs-tp", "lr, loss as a sum"):
        assert growth[name] < 3, name
    graph = (out / "graph.txt").read_text()
    assert "resample(%x2)" in graph
    assert graph.count("by plain") == 3
    assert graph.count("by gs-tp") == 3


def test_computation_time(tmp_path):
    lines = result("computation_time", tmp_path / "out", "time.png")
    assert {row["estimator"] for row in lines if "ratio" in row} == {"rp", "lr", "tp at beta", "tp at site"}
    assert all(row["ratio"] > 0 for row in lines if "ratio" in row)
    assert [row["horizon"] for row in lines if "horizon" in row] == [10, 30]
