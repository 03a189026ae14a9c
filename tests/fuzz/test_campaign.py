"""A small part of the campaign, and that it finds what is wrong."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import propc

from .campaign import WAYS, Way, examine, run
from .exact import exact
from .generator import generate
from .program import Program

BIASED = Way(propc.estimator("lr", baseline=lambda costs: 0.2 * costs))
SEEDS = range(10, 34)  # of all kinds but edges of parameters; some twelve seconds
SQUARE = Program(
    0,
    "rows",
    "def program(a, b, c):\n    c1 = propc.sample(Normal(a, 0.5), 'c1')\n    return c1.square() * c + b",
    {"a": 0.7, "b": 0.1, "c": 1.5},
)


@pytest.mark.slow
@pytest.mark.statistical
def test_random_programs_have_the_exact_gradient() -> None:
    report = run(SEEDS, each=1)
    assert report.programs == len(SEEDS)
    assert not report.of("WRONG", "crashed"), str(report)


def test_exact_answers_are_those_of_a_closed_form() -> None:
    answer = exact(SQUARE)
    assert answer.value == pytest.approx((0.7**2 + 0.5**2) * 1.5 + 0.1, rel=1e-6)
    assert answer.gradients == pytest.approx((2 * 0.7 * 1.5, 1.0, 0.7**2 + 0.5**2), rel=1e-6)


def test_exact_answers_see_jumps() -> None:
    jump = replace(SQUARE, text=SQUARE.text.replace("c1.square() * c + b", "(c1 > 1).to(a.dtype) + 0 * b * c"))
    density = torch.distributions.Normal(0.7, 0.5).log_prob(torch.tensor(1.0)).exp().item()
    assert exact(jump).gradients[0] == pytest.approx(density, rel=2e-3)


def test_a_biased_estimator_is_found() -> None:
    assert examine(SQUARE, exact(SQUARE), "lr", WAYS["lr"]).verdict == "right"
    finding = examine(SQUARE, exact(SQUARE), "biased", BIASED)
    assert finding.verdict == "WRONG"
    assert "a: " in finding.detail
    assert "c: " not in finding.detail


def test_the_campaign_finds_a_biased_estimator_too_and_prints_the_program() -> None:
    report = run(range(7, 13), ways={"infer": WAYS["infer"], "biased": BIASED})
    wrong = [each for each in report.of("WRONG") if each.way == "biased"]
    assert wrong
    assert f"seed {wrong[0].program.seed}, biased: WRONG" in str(report)
    assert wrong[0].program.text in str(report)


def test_a_refusal_and_a_bare_error_are_told_apart() -> None:
    relaxed = replace(SQUARE, kind="rows")
    assert examine(relaxed, exact(relaxed), "st", Way("st")).verdict == "refused"

    def broken(site: object) -> str:
        raise ZeroDivisionError

    assert examine(relaxed, exact(relaxed), "broken", Way(broken)).verdict == "crashed"


def test_a_seed_gives_one_program() -> None:
    assert [generate(seed) for seed in range(50)] == [generate(seed) for seed in range(50)]
    assert {generate(seed).kind for seed in range(50)} == {"rows", "gaussian", "edge", "meet"}
