"""What enters and leaves a stretch of a plan."""

from __future__ import annotations

from propc.ir.nodes.leaves import Input
from propc.runtime.plan.liveness import block
from propc.runtime.plan.step import Step

NODE = Input(name="x", outputs=(), path="x")

PLAN = [
    Step(NODE, lambda a: (a, a), (0,), range(2, 4)),
    Step(NODE, lambda a, b: (a + b,), (2, 1), range(4, 5)),
    Step(NODE, lambda a: (a,), (4,), range(5, 6)),
    Step(NODE, lambda a, b: (a * b,), (5, 2), range(6, 7)),
]


def test_a_block_reads_what_it_does_not_make() -> None:
    middle = block(PLAN, 1, 3, wanted=(6,))
    assert (middle.reads, middle.writes) == ((2, 1), (5,))
    assert middle.steps == tuple(PLAN[1:3])


def test_what_is_returned_leaves() -> None:
    assert block(PLAN, 0, 2, wanted=(6, 3)).writes == (2, 3, 4)
    assert block(PLAN, 0, 4, wanted=(6, 3)).writes == (3, 6)
    assert block(PLAN, 0, 4, wanted=(6,)).reads == (0, 1)
