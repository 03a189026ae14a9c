"""Figures of two checkouts beside each other."""

from __future__ import annotations

from before_after import figures, medians

PAGE = """
| step time / plain rp | H=10              | H=100 |
|----------------------|-------------------|-------|
| propc rp             | 0.69 [0.60, 0.80] | 1     |
| propc tp             | 1.45              | n/a   |

| memory | H=10 |
|--------|------|
| rp     | 2    |
"""


def test_figures_of_a_page() -> None:
    assert figures(PAGE) == {
        "step time / plain rp: propc rp, H=10": 0.69,
        "step time / plain rp: propc rp, H=100": 1.0,
        "step time / plain rp: propc tp, H=10": 1.45,
        "memory: rp, H=10": 2.0,
    }


def test_medians_of_what_all_runs_have() -> None:
    assert medians([{"a": 3.0, "b": 1.0}, {"a": 1.0}, {"a": 2.0, "b": 5.0}]) == {"a": 2.0}
