"""What a stretch of a plan reads from before it, and leaves behind it."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from propc.runtime.plan.step import Plan, Step


@dataclass(frozen=True, slots=True)
class Block:
    """Consecutive steps of a plan.

    Attributes:
        steps: in order.
        reads: the places of what they read and do not make.
        writes: the places of what they make and others read later.
    """

    steps: tuple[Step, ...]
    reads: tuple[int, ...]
    writes: tuple[int, ...]


def block(plan: Plan, start: int, stop: int, wanted: Collection[int]) -> Block:
    """The steps ``plan[start:stop]`` with what enters and leaves.

    Args:
        wanted: the places of what is read after the plan.
    """
    steps = tuple(plan[start:stop])
    made = {i: None for step in steps for i in step.writes}
    reads = dict.fromkeys(i for step in steps for i in step.reads if i not in made)
    later = {i for step in plan[stop:] for i in step.reads} | set(wanted)
    return Block(steps, tuple(reads), tuple(i for i in made if i in later))
