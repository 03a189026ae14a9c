"""What runs the plan of a graph, and what there is to say of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from propc.runtime.plan.step import Plan, Values
from propc.runtime.planned_graph import PlannedGraph


@dataclass(frozen=True)
class Report:
    """What a backend has made of a graph.

    Attributes:
        backend: its name.
        stages: how many distinct ones it has compiled.
        uses: how many times they run in a call.
        seconds: what compiling took.
        apart: the nodes that run as they do on `eager`, with the reasons.
        measured: seconds of a forward and reverse pass, by backend, where several were tried.
        waiting: whether the first call is still to come.
    """

    backend: str
    stages: int = 0
    uses: int = 0
    seconds: float = 0.0
    apart: tuple[tuple[str, str], ...] = ()
    measured: tuple[tuple[str, float], ...] = ()
    waiting: bool = False

    def __str__(self) -> str:
        if self.waiting:
            found = f"backend {self.backend}: compiles at the first call"
        elif not self.stages:
            found = f"backend {self.backend}: nothing is compiled"
        else:
            found = (
                f"backend {self.backend}: {self.stages} stages compiled in {self.seconds:.1f} s, run {self.uses} times"
            )
        reasons: dict[str, list[str]] = {}
        for name, why in self.apart:
            reasons.setdefault(why, []).append(name)
        if self.measured:
            best = min(seconds for _, seconds in self.measured)
            found += "; measured " + ", ".join(f"{name} {seconds / best:.2f}" for name, seconds in self.measured)
        return "\n".join([found, *(f"  not compiled: {_some(names)}: {why}" for why, names in reasons.items())])


def _some(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= 4 else f"{names[0]}, {names[1]}, … {names[-1]} ({len(names)})"


class Violated(Exception):
    """A parameter of a site is not in its support."""


class Backend(ABC):
    """Turns the plan of a graph into one that runs faster, and gives the same numbers from the same noise.

    A plan is a sequence of `Step`s: each with its node, a function, the places of the values that it reads, one for
    each argument, and of those that it writes, one for each of what the function gives. The reverse pass is the
    autograd graph of what the functions do.
    """

    name: ClassVar[str]

    def require(self, devices: Sequence[torch.device]) -> None:  # noqa: B027
        """Check that it can run on these devices, those of a graph's values.

        Raises:
            BackendError: says what is missing.
        """

    @abstractmethod
    def plan(self, planned: PlannedGraph, values: Values) -> tuple[Plan, Report]:
        """The plan to run from the second call on, and what there is to say of it.

        It writes, in an order in which everything is written before it is read, what is returned. A scan's two own
        steps stay around those of its body.

        Args:
            planned: with the plan as it is, `plan`, and its `graph`.
            values: all values of its first call, by place.
        """
