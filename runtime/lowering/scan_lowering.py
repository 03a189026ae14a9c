"""Scans: one step of theirs in front of the body, and one behind it, between which it runs as a loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from propc.ir.nodes.scan import Scan
from propc.ir.records import Carried, Token
from propc.runtime.lowering.lowering import Lowering, lowers
from propc.runtime.lowering.planner import Planner
from propc.runtime.lowering.token_reads import Inlet
from propc.runtime.plan.scan_loop import Loop
from propc.runtime.plan.step import Step, Values, same


@lowers(Scan)
class ScanLowering(Lowering):
    """Passes on what is carried; on other draws, in a body that runs once, without the tokens."""

    def step(self, planner: Planner, node: Scan) -> Step:
        """What it carries, as it is before the first step."""
        inlets = [_inlet(planner, carried, carried.first) for carried in node.tokens]
        return planner.step(node, _fitted_last(inlets), *(inlet.read for inlet in inlets))

    def replayed(self, planner: Planner, step: Step, first: Values) -> Step:
        reads = planner.places.reads(step.node)
        return Step(step.node, same, reads, planner.places.writes(step.node)[: len(reads)])

    def obstacle(self, planner: Planner, node: Scan) -> str:
        return "it carries values from step to step"


def end_scan(planner: Planner, node: Scan) -> Loop:
    """Plan the end of a scan's step: the tokens that it carries on, and a step that reads all that it does."""
    slots = planner.places.slots
    again = [slots[ref] for ref in node.again]
    for carried in node.tokens:
        inlet = _inlet(planner, carried, carried.again)
        again.append(inlet.read)
        if inlet.fitting is not None:
            again[-1] = planner.places.add(Token(node.name, len(slots)))
            planner.steps.append(Step(node, _fitted_last([inlet]), (inlet.read,), (again[-1],)))
    planner.steps.append(Step(node, _nothing, tuple(again), ()))
    return Loop(node, tuple(planner.places.writes(node)), tuple(again))


def _inlet(planner: Planner, carried: Carried, token: Token) -> Inlet:
    return planner.inlets.joined((token,), carried.plates, planner.graph[carried.reader], carried.along)


def _fitted_last(inlets: Sequence[Inlet]) -> Callable[..., list[Any]]:
    """A function that gives what it takes; the last of it are tokens, fitted to their readers."""

    def run(*given: Any) -> list[Any]:
        plain = len(given) - len(inlets)
        return [*given[:plain], *(inlet.fit(token) for inlet, token in zip(inlets, given[plain:]))]

    return run


def _nothing(*_: Any) -> tuple[()]:
    """Gives nothing."""
    return ()
