"""The table of sites."""

from __future__ import annotations

import pytest
import torch
from showcase import GRAPHS, rewards_graph, rollout_graph
from torch.distributions import Normal

import propc
from propc.diagnostics.explanation import HEADERS, Explanation


@pytest.mark.parametrize("name", GRAPHS)
def test_golden(name, golden):
    golden(f"{name}.explain.txt", str(Explanation(GRAPHS[name]())))


def test_a_row_for_each_site():
    rows = Explanation(rewards_graph(30)).rows
    assert [row["site"] for row in rows] == [f"{kind}{t}" for t in range(30) for kind in "as"]
    assert all(tuple(row) == HEADERS for row in rows)
    assert rows[4]["messages in"] == rows[4]["costs after it"] == "r2..r29"
    assert {row["estimator"] for row in rows} == {"lr", "plain"}


def test_messages_go_to_what_wants_a_gradient():
    (row, *_) = Explanation(rollout_graph(3)).rows
    assert row["messages in"] == "cotangent, cost"
    assert row["messages out"] == "loc"  # the scale is a number


def test_names_are_not_read_as_numbers():
    compiled = propc.compile(lambda m: propc.sample(Normal(m, 1.0), "1e5").square(), estimator="lr")
    assert "1e5" in str(compiled.explain(torch.zeros(3, requires_grad=True)))


def test_a_program_without_sites():
    assert str(propc.compile(lambda x: x.square()).explain(torch.zeros(3))).startswith("site ")


def test_notebooks_get_a_table_that_is_escaped():
    compiled = propc.compile(lambda m: propc.sample(Normal(m, 1.0), "<i>").square(), estimator="lr")
    text = compiled.explain(torch.zeros(3, requires_grad=True))._repr_html_()
    assert text.startswith("<table>")
    assert "&lt;i&gt;" in text


def test_a_prompt_shows_the_table_and_of_a_graph_a_line():
    compiled = propc.compile(lambda m: propc.sample(Normal(m, 1.0), "x").square(), estimator="lr")
    theta = torch.zeros(3, requires_grad=True)
    assert repr(compiled.explain(theta)) == str(compiled.explain(theta))
    assert repr(compiled.graph(theta)) == "<PropagationGraph '<lambda>': 1 site, 1 cost, 1 route>"


def test_a_ratio_of_what_is_no_site():
    compiled = propc.compile(lambda m: propc.sample(Normal(m, 1.0), "x").square(), estimator="lr")
    with pytest.raises(propc.PropcValueError, match=r"a ratio of 'y', which is no site. Known: 'x'"):
        compiled.explain(torch.zeros(3, requires_grad=True), snr={"y": 1.0})
