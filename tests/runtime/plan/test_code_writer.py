"""A plan as a straight line of source."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import pytest

from propc.ir.nodes.leaves import Input
from propc.runtime.plan.code_writer import failed, straight
from propc.runtime.plan.step import Step

NODE = Input(name="x", outputs=(), path="x")
PLAN = [
    Step(NODE, lambda a, b: (a + b, a * b), (0, 1), range(2, 4)),
    Step(NODE, lambda a, b: (a - b,), (2, 3), (4,)),
    Step(NODE, lambda a: [a / 2], (4,), (5,)),
    Step(NODE, lambda: (), (), ()),
]


def test_it_does_what_its_steps_do() -> None:
    assert straight(PLAN, (0, 1), range(7))(3, 4) == (3, 4, 7, 12, -5, -2.5, None)
    assert straight(PLAN, (1, 0), (5, 4, 5))(4, 3) == (-2.5, -5, -2.5)


class Value:
    """Something that can be seen to go."""


def test_it_lets_values_go() -> None:
    made: list[weakref.ref[Value]] = []

    def make() -> Sequence[Any]:
        values = Value(), Value()
        made.extend(map(weakref.ref, values))
        return values

    def look(*read: Value) -> Sequence[Any]:
        return [[ref() is not None for ref in made]]

    plan = [
        Step(NODE, make, (), (0, 1)),  # nobody reads the second
        Step(NODE, look, (0,), (2,)),
        Step(NODE, look, (), (3,)),
    ]
    assert straight(plan, (), (2, 3))() == ([True, False], [False, False])


@pytest.mark.parametrize("bad", range(4))
def test_it_knows_what_failed(bad: int) -> None:
    steps = list(PLAN)
    steps[bad] = Step(NODE, lambda *values: 1 / 0, PLAN[bad].reads, PLAN[bad].writes)  # type: ignore[return-value, arg-type]
    line = straight(steps, (0, 1), (5,))
    with pytest.raises(ZeroDivisionError) as caught:
        line(3, 4)
    assert failed(line, steps, caught.value) == bad
    assert failed(line, steps, ValueError()) is None


def test_a_count_that_does_not_fit_is_an_error() -> None:
    with pytest.raises(ValueError, match="unpack"):
        straight([Step(NODE, lambda: (1, 2), (), (0,))], (), ())()
