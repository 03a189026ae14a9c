"""A plan of steps as a straight line of source."""

from __future__ import annotations

import pytest

from propc.runtime.plan.codegen import StepCall, Straight, Values

PLAN = [
    StepCall(lambda a, b: (a + b, a * b), (0, 1), range(2, 4)),
    StepCall(lambda a, b: (a - b,), (2, 3), range(4, 5)),
    StepCall(lambda a: [a / 2], (4,), range(5, 6)),
    StepCall(lambda: (), (), range(0)),
]


def test_it_does_what_its_steps_do() -> None:
    line: Values = [3, 4, None, None, None, None]
    loop = list(line)
    Straight([(step, ()) for step in PLAN]).run(line)
    for step in PLAN:
        step(loop)
    assert line == loop == [3, 4, 7, 12, -5, -2.5]


def test_it_lets_values_go() -> None:
    values: Values = [3, 4, None, None, None, None]
    Straight([(PLAN[0], (0,)), (PLAN[1], (2, 3)), (PLAN[2], ())]).run(values)
    assert values == [None, 4, None, None, -5, -2.5]


@pytest.mark.parametrize("bad", range(4))
def test_it_knows_what_failed(bad: int) -> None:
    steps = list(PLAN)
    steps[bad] = StepCall(lambda *values: 1 / 0, PLAN[bad].reads, PLAN[bad].writes)  # type: ignore[return-value, arg-type]
    line = Straight([(step, ()) for step in steps])
    with pytest.raises(ZeroDivisionError) as caught:
        line.run([3, 4, None, None, None, None])
    assert line.failed(caught.value) == bad
    assert line.failed(ValueError()) is None


def test_a_count_that_does_not_fit_is_an_error() -> None:
    with pytest.raises(ValueError, match="unpack"):
        Straight([(StepCall(lambda: (1, 2), (), range(0, 1)), ())]).run([None])
