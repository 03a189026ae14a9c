"""Plans of calls over a table of values: what a stretch of one reads from before it, and leaves behind it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from propc.runtime.plan.codegen import StepCall


@dataclass(frozen=True, slots=True)
class Block:
    """Consecutive calls of a plan.

    Attributes:
        calls: in order.
        reads: the places of what they read and do not make.
        writes: the places of what they make and others read later.
    """

    calls: tuple[StepCall, ...]
    reads: tuple[int, ...]
    writes: tuple[int, ...]


def block(plan: Sequence[StepCall], start: int, stop: int, returned: Collection[int]) -> Block:
    """The calls ``plan[start:stop]`` with what enters and leaves.

    Args:
        returned: the places of what is read after the plan.
    """
    calls = tuple(plan[start:stop])
    made = {i: None for call in calls for i in call.writes}
    reads = dict.fromkeys(i for call in calls for i in call.reads if i not in made)
    later = {i for call in plan[stop:] for i in call.reads} | set(returned)
    return Block(calls, tuple(reads), tuple(i for i in made if i in later))


def last_reads(plan: Sequence[StepCall], returned: Collection[int]) -> list[list[int]]:
    """For each call of a plan, the places of the values that nobody reads after it."""
    last: dict[int, int] = {}
    for i, call in enumerate(plan):
        last.update(dict.fromkeys((*call.reads, *call.writes), i))
    done: list[list[int]] = [[] for _ in plan]
    for slot, i in last.items():
        if slot not in returned:
            done[i].append(slot)
    return done
