"""A scan in text, pictures and tables: one node, which says how often it runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from scan_programs import BATCH, both, diamond, program, walk, whole
from torch import Tensor
from torch.distributions import Normal

import propc
from propc.errors import GraphError
from propc.ir import Scan

pytestmark = pytest.mark.filterwarnings("ignore:.*reaches no cost")  # draws that nobody reads


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
