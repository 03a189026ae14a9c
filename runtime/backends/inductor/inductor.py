"""The `inductor` backend: every distinct stage compiled once, forward and reverse, and called many times."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor
from tqdm import tqdm

from propc.errors import BackendError, message
from propc.ir.nodes.scan import Scan
from propc.ir.nodes.site import Site
from propc.runtime.backend import Backend, Report
from propc.runtime.backends.inductor import compile_stage
from propc.runtime.backends.inductor.compiled_units import Apart, Piece, Unit, UnitInput, pieces, tokens_of
from propc.runtime.backends.inductor.forward_source import StageSequence
from propc.runtime.backends.inductor.joint_graph import READ, Halves, Layout
from propc.runtime.backends.inductor.stage import CompiledStage
from propc.runtime.backends.inductor.stage_run import StageRun
from propc.runtime.checks.values import Bounds
from propc.runtime.plan.blocks import blocks_of
from propc.runtime.plan.code_writer import straight
from propc.runtime.plan.liveness import block
from propc.runtime.plan.step import Plan, Step, Values
from propc.runtime.planned_graph import PlannedGraph

# Seconds of compiling before a progress line appears. A choice: who waits no longer needs no reason for it.
PATIENCE = 2.0


@dataclass(frozen=True)
class Made:
    """The two halves of a kind of unit, compiled."""

    halves: Halves
    forward: Callable[[list[Tensor]], Sequence[Tensor]]
    reverse: Callable[[list[Tensor]], Sequence[Tensor]] | None


class _Bar(tqdm):  # type: ignore[type-arg]
    """A progress line that starts no thread."""

    monitor_interval = 0


class Inductor(Backend):
    """Stages compiled by TorchInductor; what cannot be compiled runs as on `eager`, and the report says why."""

    name: ClassVar[str] = "inductor"

    def require(self, devices: Sequence[torch.device]) -> None:
        for kind in sorted({device.type for device in devices}):
            lacking = compile_stage.missing(kind)
            if lacking:
                found = f"backend 'inductor' needs {lacking} for device {kind!r}, and finds none"
                fix = "Install g++ (or name a compiler in the environment variable CXX)"
                fix = fix if kind == "cpu" else f"Install {lacking}"
                raise BackendError(message(found, f"{fix}, or use backend='eager'."))

    def plan(self, planned: PlannedGraph, values: Values) -> tuple[Plan, Report]:
        return _Compilation(planned, values).plan()


class _Compilation:
    def __init__(self, planned: PlannedGraph, values: Values) -> None:
        self.planned = planned
        self.tokens = tokens_of(planned)
        self.layouts = {i: Layout.of(value).apart() for i, value in enumerate(values) if isinstance(value, Tensor)}
        self.layouts.update({i: self.layouts[i].dense() for i in self.tokens if i in self.layouts})
        self.pieces = pieces(planned)

    def plan(self) -> tuple[Plan, Report]:
        start = time.perf_counter()
        made, failed = self._compiled()
        parts = [self._part(piece, made, failed) for piece in self.pieces]
        stages = [part for part in parts if isinstance(part, CompiledStage)]
        apart = [
            (part.step.node.name, part.why)
            for part in parts
            if isinstance(part, Apart) and not isinstance(part.step.node, Scan)  # which only passes values on
        ]
        for part in parts:
            if isinstance(part, Unit):
                apart += [(node.name, failed[self._kind(part)]) for node in part.nodes]
        seconds = time.perf_counter() - start
        report = Report(Inductor.name, len({id(s.halves) for s in stages}), len(stages), seconds, tuple(apart))
        return list(self._joined(parts)), report

    # -- compiling ----------------------------------------------------------------------

    def _kind(self, unit: Unit) -> Hashable:
        """Units of one kind share their code."""
        known = (self.layouts.get(i) for i in unit.block.reads)
        return unit.key, tuple(None if each is None else replace(each, requires_grad=False) for each in known)

    def _compiled(self) -> tuple[dict[Hashable, Made], dict[Hashable, str]]:
        """The code of each kind of unit, and why others have none."""
        kinds: dict[Hashable, list[Unit]] = {}
        failed: dict[Hashable, str] = {}
        for unit in self.pieces:
            if isinstance(unit, Unit):
                kinds.setdefault(self._kind(unit), []).append(unit)
        made: dict[Hashable, Made] = {}
        with _Bar(total=len(kinds), desc=f"propc: compiling {self.planned.graph.name}", delay=PATIENCE) as bar:
            for kind, units in kinds.items():
                try:
                    made[kind] = self._make(units)
                except Exception as error:  # whatever torch says; the stage runs as it is
                    failed[kind] = _said(error)
                bar.update()
        return made, failed

    def _make(self, units: Sequence[Unit]) -> Made:
        first = units[0]
        if any(i not in self.layouts for i in first.block.reads):
            raise NotImplementedError("it reads what is no tensor")
        layouts = []
        for position, place in enumerate(first.block.reads):
            wants = any(self.layouts[unit.block.reads[position]].requires_grad for unit in units)
            layouts.append(replace(self.layouts[place], requires_grad=wants))
        tokens = frozenset(i for i, place in enumerate(first.block.writes) if place in self.tokens)
        halves = compile_stage.traced(self._function(first), layouts, tokens)
        wanted = {i for kind, i in (*halves.takes, *halves.wants) if kind == READ}
        if any(first.block.reads[i] in self.tokens for i in wanted):
            raise NotImplementedError("it reads a token")
        forward = compile_stage.compiled(halves.forward, reverse=False)
        reverse = None if halves.reverse is None else compile_stage.compiled(halves.reverse, reverse=True)
        return Made(halves, forward, reverse)

    def _function(self, unit: Unit) -> Callable[..., Sequence[Tensor]]:
        """What a unit does, as a function of what it reads; with a flag behind, where parameters are to be checked."""
        steps, writes = unit.block.steps, unit.block.writes
        if bounds := self._bounds(unit):
            site, flag = steps[-1], len(self.planned.places)
            check = Step(site.node, lambda *phi: (_valid(bounds, phi),), site.reads, (flag,))
            steps, writes = (*steps[:-1], check, site), (*writes, flag)
        line = straight(steps, unit.block.reads, writes)

        def run(*given: Tensor) -> Sequence[Tensor]:
            with self.planned.mode.unchecked():
                return line(*given)

        return run

    def _bounds(self, unit: Unit) -> Bounds:
        """What is to be checked of the parameters of its site at every call, if anything."""
        site = unit.nodes[-1]
        return self.planned.planner.sites.bounds.get(site.name, ()) if isinstance(site, Site) else ()

    # -- putting together ---------------------------------------------------------------

    def _part(
        self, piece: Piece, made: dict[Hashable, Made], failed: dict[Hashable, str]
    ) -> CompiledStage | UnitInput | Apart | Unit:
        if not isinstance(piece, Unit) or self._kind(piece) in failed:
            return piece
        code = made[self._kind(piece)]
        return CompiledStage(piece, code.halves, code.forward, code.reverse, bool(self._bounds(piece)))

    def _joined(self, parts: Sequence[CompiledStage | UnitInput | Apart | Unit]) -> Iterator[Step]:
        """The plan, with a run in place of consecutive stages and the wires between them."""
        plan, inside = self.planned.plan, blocks_of(self.planned.graph)
        start = 0
        group: list[CompiledStage | UnitInput] = []

        def close(stop: int) -> Iterator[Step]:
            if any(isinstance(part, CompiledStage) for part in group):
                whole = block(plan, start, stop, self.planned.places.returned)
                entering = [self.layouts[i] for i in whole.reads]
                run = StageRun(StageSequence(tuple(group), whole, entering, self.tokens, self.layouts))
                yield Step(plan[start].node, run, whole.reads, whole.writes, run.heard)
            else:
                yield from plan[start:stop]

        at = 0
        for part in parts:
            unit = part.unit if isinstance(part, CompiledStage) else part
            count = len(unit.nodes) if isinstance(unit, Unit) else 1
            if group and inside.get(plan[at].node.name) != inside.get(plan[start].node.name):
                yield from close(at)
                start, group = at, []
            if isinstance(part, (CompiledStage, UnitInput)):
                group.append(part)
            else:
                yield from close(at)
                yield from plan[at : at + count]
                start, group = at + count, []
            at += count
        yield from close(at)


def _valid(bounds: Bounds, phi: Sequence[Tensor]) -> Tensor:
    """Whether parameters are in their support, a tensor of one truth."""
    found: Tensor | None = None
    for index, known in bounds:
        constraint = known if not hasattr(known, "at") else known.at(phi)
        each = constraint.check(phi[index]).all()
        found = each if found is None else found & each
    assert found is not None
    return found


def _said(error: Exception) -> str:
    """The first line of what an error says."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
