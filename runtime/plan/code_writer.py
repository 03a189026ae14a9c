"""Functions generated as source, a line for each call.

    v7, = f3(v2, v0); v2 = None
    v8, v9, = f4(v7)

A loop over small closures would spend about as long on itself as a small tensor operation takes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from propc.runtime.plan.step import Plan

_VARIABLE = re.compile(r"\b[cnuv]\d+(?:_\d+)?\b")


@dataclass
class CodeWriter:
    """Source of a function, with the objects that it names.

    Attributes:
        lines: in order; the last returns. A variable is one of the letters c, n, u, v and a number, perhaps two.
    """

    lines: list[str] = field(default_factory=list)
    objects: dict[str, Any] = field(default_factory=dict)

    def hold(self, prefix: str, value: Any) -> str:
        """A name for an object."""
        name = f"{prefix}{len(self.objects)}"
        self.objects[name] = value
        return name

    def call(self, made: Iterable[str], function: str, given: Iterable[str]) -> None:
        """A line that calls a function, which gives as many values as there are variables for them."""
        names = listed(made, bare=True)
        self.lines.append(f"{names} = {function}({', '.join(given)})" if names else f"{function}({', '.join(given)})")

    def function(self, arguments: Iterable[str], file: str) -> Callable[..., Any]:
        """A function of these lines, which lets go of every variable after its last use."""
        last = {name: i for i, line in enumerate(self.lines) for name in _VARIABLE.findall(line)}
        done: dict[int, list[str]] = {}
        for name, i in last.items():
            if i < len(self.lines) - 1:
                done.setdefault(i, []).append(name)
        lines = [
            " " + "; ".join([line, *(f"{name} = None" for name in done.get(i, ()))])
            for i, line in enumerate(self.lines)
        ]
        exec(compile("\n".join([f"def line({', '.join(arguments)}):", *lines]), file, "exec"), self.objects)
        made: Callable[..., Any] = self.objects["line"]
        return made


def listed(names: Iterable[str], bare: bool = False) -> str:
    """Variables, as a tuple or, `bare`, to be assigned to."""
    joined = "".join(f"{name}, " for name in names)
    return joined.rstrip() if bare else f"({joined})"


def straight(plan: Plan, reads: Iterable[int], writes: Iterable[int]) -> Callable[..., tuple[Any, ...]]:
    """A plan as one function, a line for each step.

    Args:
        reads: the places of its arguments.
        writes: the places of what it gives.

    What nobody has written is None.
    """
    code, entering = CodeWriter(), [f"v{i}" for i in reads]
    known = {*entering, *(f"v{i}" for step in plan for i in step.writes)}

    def named(places: Iterable[int]) -> Iterator[str]:
        return (name if name in known else "None" for name in (f"v{i}" for i in places))

    for step in plan:
        code.call(named(step.writes), code.hold("f", step.function), named(step.reads))
    code.lines.append(f"return {listed(named(writes))}")
    return code.function(entering, "<propc straight line>")


def failed(line: Callable[..., Any], plan: Sequence[Any], error: BaseException) -> int | None:
    """The index of the step of a straight line that raised an error; None if it was raised elsewhere."""
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code is line.__code__:
            return trace.tb_lineno - 2 if trace.tb_lineno - 2 < len(plan) else None
        trace = trace.tb_next
    return None
