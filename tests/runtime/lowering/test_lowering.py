"""The open table of lowerings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from propc.errors import PropcTypeError, PropcValueError
from propc.ir.nodes.cost import Cost
from propc.ir.nodes.node import Node
from propc.runtime.lowering import Lowering, lowers
from propc.runtime.lowering import lowering as table
from propc.runtime.lowering.lowering import lowering
from propc.runtime.plan.step import Step, same


@dataclass(frozen=True, slots=True, kw_only=True)
class Mine(Node):
    """A kind that propc does not know."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Derived(Mine):
    """A kind of mine."""


@pytest.fixture(autouse=True)
def own_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "_TABLE", dict(table._TABLE))


def test_a_kind_of_ones_own() -> None:
    node: Any = Mine(name="m", outputs=())
    with pytest.raises(PropcTypeError, match=r"nodes of Mine have no lowering.*lowers\(Mine\)"):
        lowering(node)

    @lowers(Mine)
    class MineLowering(Lowering):
        def step(self, planner: Any, node: Node) -> Step:
            return Step(node, same, (), ())

    for known in (node, Derived(name="d", outputs=())):
        found = lowering(known)
        assert isinstance(found, MineLowering)
        step = found.step(None, known)
        assert found.replayed(None, step, ()) is step  # type: ignore[arg-type]
        assert "not known" in found.obstacle(None, known)  # type: ignore[arg-type]
        assert found.key(None, known) == id(known)  # type: ignore[arg-type]


def test_what_is_refused() -> None:
    with pytest.raises(PropcTypeError, match="classes of nodes"):
        lowers(int)  # type: ignore[arg-type]
    with pytest.raises(PropcValueError, match="nodes of Cost have a lowering: CostLowering"):
        lowers(Cost)
    with pytest.raises(PropcTypeError, match="is no lowering"):
        lowers(Mine)(int)  # type: ignore[type-var]
