"""The forward pass of a run of stages, as a straight line of source."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from propc.runtime.backends.inductor.compiled_units import Unit, UnitInput
from propc.runtime.backends.inductor.joint_graph import NOISE, READ, RESULT, Layout
from propc.runtime.backends.inductor.layouts import fitted, needs_fit, variable
from propc.runtime.backends.inductor.stage import CompiledStage
from propc.runtime.plan.code_writer import CodeWriter, listed
from propc.runtime.plan.liveness import Block


@dataclass(frozen=True)
class StageSequence:
    """Consecutive stages, and the wires between them.

    Attributes:
        parts: in order.
        whole: their steps, with what enters and leaves.
        entering: the layouts of what enters.
        tokens: the places of tokens.
        layouts: of everything, by place.
    """

    parts: Sequence[CompiledStage | UnitInput]
    whole: Block
    entering: Sequence[Layout]
    tokens: frozenset[int]
    layouts: Mapping[int, Layout]


class Forward:
    """The line of the forward pass.

    Attributes:
        names: the variable of the value at each place.
        kept: variables that the reverse pass needs, by their position among what is saved.
        leaving, leaving_all: variables of what leaves and is made here; of all that leaves.
    """

    def __init__(self, run: StageSequence) -> None:
        self.run, self.source = run, CodeWriter()
        self.names: dict[int, str] = {}
        self.layouts: dict[str, Layout] = {}
        self.entered: dict[str, int] = {}
        self.wants: dict[str, bool] = {}
        for place, layout in zip(run.whole.reads, run.entering):
            self._enter(place, layout)
        self.flags: list[str] = []
        self.used: dict[str, None] = {}
        for i, part in enumerate(run.parts):
            if isinstance(part, UnitInput):
                self._wire(part)
            else:
                self._stage(i, part)
        self.leaving_all = [self._leave(place) for place in run.whole.writes]
        self.leaving = tuple(dict.fromkeys(name for name in self.leaving_all if name not in self.entered))
        entering = [self.names[place] for place in run.whole.reads]
        self.kept = {name: i for i, name in enumerate((*entering, *(n for n in self.used if n not in self.entered)))}

    def made(self) -> Any:
        """The function: from what enters to what leaves, what the reverse pass needs, and flags."""
        extra = [name for name in self.kept if name not in self.entered]
        self.source.lines.append(f"return {listed(self.leaving)}, {listed(extra)}, {listed(self.flags)}")
        return self.source.function(self.entered, "<propc run>")

    def _enter(self, place: int, layout: Layout) -> None:
        name = self.names[place] = f"v{place}"
        self.layouts[name], self.entered[name], self.wants[name] = layout, place, layout.requires_grad
        if place not in self.run.tokens:
            again = fitted(self.source, name, layout)
            self.source.lines.append(f"if {name}.stride() != {layout.stride}: {name} = {again}")

    def _wire(self, part: UnitInput) -> None:
        if part.joins:
            (made,) = part.step.writes
            self.names[made] = f"t{made}"
        else:
            for read, made in zip(part.step.reads, part.step.writes):
                self.names[made] = self.names[read]

    def _stage(self, index: int, part: CompiledStage) -> None:
        code, unit = part.halves, part.unit
        run = self.source.hold("f", part.forward)
        for j, layout in enumerate(code.noise):
            self._draw(f"n{index}_{j}", layout)
        arguments = [
            f"n{index}_{i}" if kind == NOISE else self._argument(self.names[unit.block.reads[i]], code.layouts[i])
            for kind, i in code.takes
        ]
        made = [f"u{index}_{j}" for j in range(len(code.results))]
        for name, layout in zip(made, code.results):
            self.layouts[name] = layout
        self.source.call(made, run, [f"[{', '.join(arguments)}]"])
        for position, place in enumerate(unit.block.writes):
            at = code.outputs[position]
            name = self.names[place] = f"t{place}" if at is None else made[at]
            self.wants[name] = self.wants.get(name, False) or code.kinds[position].requires_grad
        if part.flagged:
            at = code.outputs[-1]
            assert at is not None
            self.flags.append(made[at])
        for kind, i in code.wants:
            if kind in (READ, NOISE, RESULT):
                self.used[self._named(index, unit, kind, i)] = None

    def _draw(self, name: str, layout: Layout) -> None:
        randn = self.source.hold("randn", torch.randn)
        options = f"dtype={self.source.hold('dtype', layout.dtype)}"
        if layout.device.type != "cpu":
            options += f", device={self.source.hold('device', layout.device)}"
        self.source.lines.append(f"{name} = {randn}({layout.shape}, {options})")

    def _named(self, index: int, unit: Unit, kind: str, i: int) -> str:
        return self.names[unit.block.reads[i]] if kind == READ else variable(index, kind, i)

    def _argument(self, name: str, want: Layout) -> str:
        if not needs_fit(self.layouts[name], want):
            return name
        return fitted(self.source, name, want)

    def _leave(self, place: int) -> str:
        name = self.names[place]
        if place in self.run.tokens and name not in self.entered and name not in self.layouts:
            layout = self.run.layouts[place]
            zero = torch.zeros((), dtype=layout.dtype, device=layout.device).expand(layout.shape)
            self.source.lines.append(f"{name} = {self.source.hold('zero', zero)}.detach()")
            self.layouts[name], self.wants[name] = layout, True
        return name
