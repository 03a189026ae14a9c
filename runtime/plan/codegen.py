"""A plan of steps as one straight-line function, generated as source, a line for each step.

    values[7], = f3(values[2], values[0]); values[2] = None
    values[8], values[9], = f4(values[7])

A loop over small closures would spend about as long on itself as a small tensor operation takes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

Values = list[Any]


@dataclass(frozen=True, slots=True)
class StepCall:
    """A step: calls a function on values of the table and puts what it gives into the table.

    Attributes:
        function: gives a sequence.
        reads: the places of its arguments.
        writes: the places of what it gives.
    """

    function: Callable[..., Sequence[Any]]
    reads: tuple[int, ...]
    writes: Sequence[int]

    def __call__(self, values: Values | dict[int, Any]) -> None:
        for i, value in zip(self.writes, self.function(*[values[i] for i in self.reads]), strict=True):
            values[i] = value


Steps = Sequence[tuple[StepCall, Sequence[int]]]  # each with the places to let go after it


def same(*values: Any) -> tuple[Any, ...]:
    """The function of a step that only gives values another place."""
    return values


class Straight:
    """Steps in order, each followed by letting go of the values that nobody reads after it.

    Args:
        steps: with the places to let go.
    """

    def __init__(self, steps: Steps) -> None:
        lines = ["def run(values):", *(_line(i, step, done) for i, (step, done) in enumerate(steps)), " return"]
        code = compile("\n".join(lines), "<propc straight line>", "exec")
        names: dict[str, Any] = {f"f{i}": step.function for i, (step, _) in enumerate(steps)}
        exec(code, names)
        self.steps = steps
        self.run: Callable[[Values | dict[int, Any]], None] = names["run"]

    def failed(self, error: BaseException) -> int | None:
        """The index of the step that raised an error; None if it was raised elsewhere."""
        trace = error.__traceback__
        while trace is not None:
            if trace.tb_frame.f_code is self.run.__code__:
                return trace.tb_lineno - 2
            trace = trace.tb_next
        return None


def _line(index: int, step: StepCall, done: Sequence[int]) -> str:
    made = "".join(f"values[{i}], " for i in step.writes) + ("= " if step.writes else "")
    call = f"{made}f{index}({', '.join(f'values[{i}]' for i in step.reads)})"
    return f" {call}" + (";" + " = ".join(f"values[{i}]" for i in done) + " = None" if done else "")
