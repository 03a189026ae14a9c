"""The text form: golden, complete, the same in every process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from showcase import GRAPHS, autoencoder_graph, rewards_graph, rollout_graph
from torch.distributions import (
    Categorical,
    LogNormal,
    MixtureSameFamily,
    MultivariateNormal,
    Normal,
    TransformedDistribution,
)
from torch.distributions import transforms as T

import propc
from propc.printing.text import runs


@pytest.mark.parametrize("name", GRAPHS)
def test_golden(name, golden):
    golden(f"{name}.txt", str(GRAPHS[name]()))


def test_a_line_for_every_node_but_numbers():
    graph = rewards_graph(30)
    lines = str(graph).splitlines()
    for node in graph:
        mine = [line for line in lines if line.startswith(f"  %{node.name} ")]
        assert len(mine) == (node.number is None and node.name != "output")


def test_before_passes():
    compiled = propc.compile(lambda m: propc.sample(Normal(m, 1.0), "x"), estimator="rp")
    (_, first), *_ = compiled.graphs(torch.zeros(3, requires_grad=True))
    assert "site Normal(loc=%input.m, scale=1)  #" in str(first)
    assert "routes" not in str(first)


@pytest.mark.slow
def test_hash_seeds_change_nothing():
    code = "from showcase import *\nfor make in GRAPHS.values(): g = make(); print(g, g.to_dot())"
    texts = {
        subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            cwd=Path(__file__).parents[1] / "helpers",
            env={**os.environ, "PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("1", "2")
    }
    assert len(texts) == 1


@pytest.mark.parametrize(
    ("names", "short"),
    [
        ([], ""),
        (["x0", "x1"], "x0, x1"),
        (["x0", "x1", "x2", "y", "x3"], "x0..x2, y, x3"),
        (["x2", "x1", "x0"], "x2..x0"),
        (["x0", "x1", "x2", "x1", "x0"], "x0..x2, x1, x0"),
        (["x0/1", "x1/1", "x2/1", "x3"], "x0/1..x2/1, x3"),
        (["z[8]", "z[9]", "z[10]"], "z[8]..z[10]"),
        (["x1", "x3", "x5"], "x1, x3, x5"),
        (["z1", "z02", "z3"], "z1, z02, z3"),
        (["a", "b", "a"], "a, b, a"),
    ],
)
def test_runs_of_names(names, short):
    assert runs(names) == short


def distribution_text(make, *tensors):
    """The site's line for a distribution of arguments a0, a1, …"""

    def program(a0, a1=None, a2=None):
        return propc.sample(make(*(a for a in (a0, a1, a2) if a is not None)), "x").reshape(5, -1).sum(1)

    (_, first), *_ = propc.compile(program, estimator="lr").graphs(*tensors)
    (line,) = (line for line in str(first).splitlines() if line.startswith("  %x "))
    return line.partition("site ")[2].partition("  #")[0]


def test_nested_distributions():
    a = torch.ones(5, 2)
    assert distribution_text(lambda m: LogNormal(m, 2.0), a) == "LogNormal(Normal(loc=%input.a0, scale=2))"
    text = distribution_text(
        lambda m, s: TransformedDistribution(Normal(m, 1.0), [T.AffineTransform(s, 3.0)]), a, a.clone()
    )
    assert text == "TransformedDistribution(Normal(loc=%input.a0, scale=1)); transforms.0.loc=%input.a1"
    text = distribution_text(lambda m, p: MixtureSameFamily(Categorical(probs=p), Normal(m, 1.0)), a, a.clone())
    assert text.startswith("MixtureSameFamily(Categorical(probs=%x.in")
    assert "Normal(loc=%input.a0, scale=1))" in text
    text = distribution_text(lambda m: MultivariateNormal(m, torch.eye(2)), a)
    assert text.startswith("MultivariateNormal(covariance_matrix=%const.expand, loc=%x.in); ")
    assert text.endswith("; _unbroadcasted_scale_tril=%x.in.1")


def test_numbers_are_written_where_they_are_read():
    text = str(rollout_graph(2))
    assert "scale=0.001" in text
    assert "const." not in text


def test_a_broken_graph_still_prints():
    graph = autoencoder_graph().without("z")
    assert "%z" in str(graph)
