"""The interface of site rules: what passes and runtime ask, every rule answers."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import propc
from propc.propagators import (
    Gated,
    InverseVariance,
    LikelihoodRatioRule,
    PathwiseRule,
    SitePropagator,
    total_propagation,
)

ROOT = Path(propc.__file__).parent
ONE_RULE = {"InverseVariance", "Gated"}


def asked_of(tree: ast.AST) -> set[str]:
    """Names of the classes that code tells objects by."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id in ("isinstance", "issubclass")
        ):
            kinds = ast.walk(node.args[1])
            found |= {
                kind.id if isinstance(kind, ast.Name) else kind.attr
                for kind in kinds
                if isinstance(kind, (ast.Name, ast.Attribute))
            }
    return found


@pytest.mark.slow
def test_no_module_tells_one_rule_from_the_others() -> None:
    files = [path for folder in (ROOT, ROOT / "passes", ROOT / "runtime") for path in folder.rglob("*.py")]
    asking = {path.name for path in files if asked_of(ast.parse(path.read_text("utf-8"))) & ONE_RULE}
    assert len(files) > 200
    assert not asking


@pytest.mark.parametrize("rule", [PathwiseRule(), LikelihoodRatioRule(), Gated(propc.propagator("clip", limit=1.0))])
def test_a_rule_that_weighs_nothing(rule: SitePropagator) -> None:
    assert (rule.mixes, rule.weighting_target, rule.weights_interval) == (1, None, 1)
    assert not rule.shares_weights
    assert not rule.rehearses
    assert rule.scores == isinstance(rule, LikelihoodRatioRule)
    assert rule.runs_user_code == (rule.name == "clip")


def test_a_rule_that_weighs() -> None:
    rule = total_propagation(target="beta", k_interval=3)
    assert (rule.mixes, rule.weighting_target, rule.weights_interval) == (2, "beta", 3)
    assert rule.shares_weights
    assert rule.scores
    assert rule.with_donor("x").donor == "x"
    assert total_propagation(weights="rehearsed").rehearses
    assert not InverseVariance((PathwiseRule(), PathwiseRule()), rule.weighting).scores
