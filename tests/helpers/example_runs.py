"""Examples run small, in a process of their own, and what they wrote."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import torch

EXAMPLES = Path(__file__).parents[2] / "examples"
GRAPH_FILES = {"graph.txt", "graph.dot"} | ({"graph.svg"} if shutil.which("dot") else set())


def run(example, out, *options):
    """Run an example small, on one thread of a process of its own; returns what it printed."""
    command = [sys.executable, str(EXAMPLES / f"{example}.py"), "--smoke", "--out", str(out), *options]
    done = subprocess.run(
        command,
        cwd=out.parent,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


def assert_wrote(out, *names):
    for name in {*names, *GRAPH_FILES}:
        assert (out / name).stat().st_size > 0, name
    assert (out / "graph.dot").read_text().lstrip().startswith(("digraph", "strict digraph"))
    if "graph.svg" in GRAPH_FILES:
        assert "<svg" in (out / "graph.svg").read_text()


def rows(out):
    return json.loads((out / "results.json").read_text())


def plain_gradient(beta, horizon, samples=100_000):
    """The chaotic RNN's gradient by ordinary PyTorch: mean and standard error."""
    beta = torch.full((samples, 1), beta, dtype=torch.float64, requires_grad=True)
    x = torch.tensor([0.35, 0.55], dtype=torch.float64).expand(samples, 2)
    W = torch.tensor([[-5.0, -25.0], [5.0, 25.0]], dtype=torch.float64)
    for _ in range(horizon):
        x = torch.sigmoid(beta * (x @ W)) + 0.001 * torch.randn_like(x)
    (draws,) = torch.autograd.grad(0.5 * (1 - x).square().sum(), beta)
    return draws.mean().item(), draws.std().item() / samples**0.5
