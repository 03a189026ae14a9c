"""What enters and leaves a stretch of a plan."""

from __future__ import annotations

from propc.runtime.plan.codegen import StepCall
from propc.runtime.plan.liveness import block, last_reads

PLAN = [
    StepCall(lambda a: (a, a), (0,), range(2, 4)),
    StepCall(lambda a, b: (a + b,), (2, 1), range(4, 5)),
    StepCall(lambda a: (a,), (4,), range(5, 6)),
    StepCall(lambda a, b: (a * b,), (5, 2), range(6, 7)),
]


def test_a_block_reads_what_it_does_not_make() -> None:
    middle = block(PLAN, 1, 3, returned=(6,))
    assert (middle.reads, middle.writes) == ((2, 1), (5,))
    assert middle.calls == tuple(PLAN[1:3])


def test_what_is_returned_leaves() -> None:
    assert block(PLAN, 0, 2, returned=(6, 3)).writes == (2, 3, 4)
    assert block(PLAN, 0, 4, returned=(6, 3)).writes == (3, 6)
    assert block(PLAN, 0, 4, returned=(6,)).reads == (0, 1)


def test_values_go_after_their_last_reader() -> None:
    assert [sorted(each) for each in last_reads(PLAN, (6,))] == [[0, 3], [1], [4], [2, 5]]
