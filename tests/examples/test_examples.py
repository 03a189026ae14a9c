"""The examples run, write what they promise, and what they show is true."""

import pytest
import torch
from example_runs import assert_wrote, plain_gradient, rows, run


def test_quickstart(tmp_path):
    printed = run("quickstart", tmp_path / "out")
    assert_wrote(tmp_path / "out")
    assert "estimated gradient in beta" in printed
    assert (tmp_path / "out" / "graph.txt").read_text().strip() in printed


def check_logistic_regression(out):
    assert_wrote(out, "table.txt", "results.json", "training.png")
    runs = {row["estimator"]: row for row in rows(out)}
    assert set(runs) == {"rp", "lr", "tp"}
    for name, row in runs.items():
        assert row["elbo_end"] > row["elbo_start"] + 200, name
        assert row["test_accuracy"] > 0.85, name
    assert runs["rp"]["variance_start"] < runs["lr"]["variance_start"] / 10
    assert runs["tp"]["variance_start"] < runs["lr"]["variance_start"] / 10


def check_chaotic_rnn(out):
    assert_wrote(out, "table.txt", "results.json", "variance.png")
    cells = rows(out)
    for horizon in {row["horizon"] for row in cells}:
        exact, error = plain_gradient(1.5, horizon)
        calm = [row for row in cells if row["horizon"] == horizon and row["beta"] == 1.5]
        assert {row["estimator"] for row in calm} == {"rp", "lr", "tp at beta", "tp at site"}
        for row in calm:
            assert row["variance"] > 0, row
            assert row["mean"] == pytest.approx(exact, rel=0, abs=6 * (row["stderr"] + error)), row
        variance = {row["estimator"]: row["variance"] for row in calm}
        assert variance["tp at beta"] < variance["lr"] / 10
        assert variance["tp at site"] < variance["lr"] / 10


@pytest.mark.statistical
def test_demo(tmp_path):
    printed = run("demo", tmp_path / "out")
    check_logistic_regression(tmp_path / "out" / "logistic_regression")
    check_chaotic_rnn(tmp_path / "out" / "chaotic_rnn")
    for path in (tmp_path / "out").rglob("*.*"):
        assert str(path) in printed


def test_custom_pass(tmp_path):
    printed = run("custom_pass", tmp_path / "out")
    dot = {path.stem: path.read_text() for path in (tmp_path / "out").glob("*.dot")}
    assert set(dot) == {"none", "lr-far-from-end", "clip-cotangents"}
    for name, text in dot.items():
        assert name in printed
        assert text.startswith("digraph")
        assert "<b>rp</b>" in text
        assert ("<b>lr</b>" in text) == (name == "lr-far-from-end")
        assert ("x0.clipped" in text) == (name == "clip-cotangents")


def test_policy_search(tmp_path):
    out = tmp_path / "out"
    run("policy_search", out)
    assert_wrote(out, "table.txt", "results.json", "learning.png", "tp-0.pt", "tp-0-first.pt")
    trials = [row for row in rows(out) if "trial" in row]
    variances = {(row["estimator"], row["stage"]): row["variance"] for row in rows(out) if "stage" in row}
    names = {"rp", "lr", "tp", "gs", "gs-tp"}
    assert {(row["estimator"], row["trial"]) for row in trials} == {(name, trial) for name in names for trial in (0, 1)}
    assert len({row["cost"] for row in trials if row["trial"] == 0}) == 1  # all start from the same policy
    assert len({row["cost"] for row in trials if row["trial"] == 1}) == len(names)
    for stage in ("first", "trained"):
        assert variances["tp", stage] < variances["lr", stage] / 10


def test_cartpole_keeps_its_energy(example, monkeypatch):
    """Without friction, force and noise, mechanical energy stays what it was."""
    system = example("cartpole.system")
    monkeypatch.setattr(system, "FRICTION", 0.0)
    monkeypatch.setattr(system, "NOISE_STD", (0.0,) * 4)
    monkeypatch.setattr(system, "SUBSTEPS", 1000)

    def energy(state):
        _, velocity, angle, spin = state.unbind(-1)
        across = velocity + system.LENGTH * spin * angle.cos()
        up = system.LENGTH * spin * angle.sin()
        kinetic = 0.5 * system.CART * velocity.square() + 0.5 * system.POLE * (across.square() + up.square())
        return kinetic - system.POLE * system.GRAVITY * system.LENGTH * angle.cos()

    state = torch.tensor([[0.0, 0.5, 2.0, 1.0], [0.3, -1.0, 0.5, -4.0]])
    later = state
    for _ in range(5):
        later = system.step(later, torch.zeros(2, 1))
    assert (later - state).abs().max() > 1
    torch.testing.assert_close(energy(later), energy(state), rtol=0, atol=0.02)


def test_learned_dynamics(example):
    """Fitted to enough episodes, the model predicts the mean and finds the noise."""
    system, dynamics, policy = (example(f"cartpole.{name}") for name in ("system", "dynamics", "policy"))
    model = dynamics.Dynamics()
    model.fit(system.run(policy.random_policy, 20, 40))
    states, actions = system.run(policy.random_policy, 10, 40)
    state, after, action = states[:-1].flatten(0, 1), states[1:].flatten(0, 1), actions.flatten(0, 1)
    drawn = model.draw(10)
    error = drawn(state, system.observe(state), action) - after
    noise = torch.tensor(system.NOISE_STD)
    assert (drawn.noise > 0.8 * noise).all()
    assert (drawn.noise < 3 * noise).all()
    assert (error.std(0) < 4 * noise).all()
    assert (error.std(0) < 0.5 * (after - state).std(0)).all()
