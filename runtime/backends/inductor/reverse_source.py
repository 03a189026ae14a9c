"""The reverse pass of a run of stages, as a straight line of source, for one choice of what it is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from propc.runtime.backends.inductor.compiled_units import UnitInput
from propc.runtime.backends.inductor.forward_source import Forward
from propc.runtime.backends.inductor.joint_graph import COTANGENT, READ, WIDE, Layout
from propc.runtime.backends.inductor.layouts import fitted, needs_fit, variable
from propc.runtime.backends.inductor.stage import CompiledStage
from propc.runtime.plan.code_writer import CodeWriter, listed

# Four cotangents or more on a tensor of up to so many elements are stacked, and summed once. Measured at 1024, over
# adding one after the other: 1.5 of the time for 3, 1.1 for 4, 0.8 for 6, 0.3 for 100; at 16,384 never less.
SMALL, FEWEST = 1024, 4


class ReverseSource:
    """The line of the reverse pass, where cotangents arrive at some of what left."""

    def __init__(self, line: Forward, pattern: Sequence[bool]) -> None:
        self.line, self.run, self.source = line, line.run, CodeWriter()
        self.arrived: dict[str, list[tuple[str, Layout | None]]] = {}
        self.fitted: set[str] = set()
        self.wide: dict[tuple[str, tuple[int, ...]], str] = {}
        self.count = 0
        for i, (name, there) in enumerate(zip(line.leaving, pattern)):
            if there:
                self.arrived.setdefault(name, []).append((f"g[{i}]", None))
        for index in reversed(range(len(self.run.parts))):
            part = self.run.parts[index]
            if isinstance(part, UnitInput):
                self._wire(part)
            else:
                self._stage(index, part)

    def made(self) -> Any:
        """The function: from what was kept and what arrived to cotangents on what entered."""
        found = [
            self._sum(self.line.names[place], layout) or "None" if layout.requires_grad else "None"
            for place, layout in zip(self.run.whole.reads, self.run.entering)
        ]
        self.source.lines.append(f"return {listed(found)}")
        return self.source.function(("s", "g"), "<propc run>")

    def _wire(self, part: UnitInput) -> None:
        if not part.joins:
            return
        (made,) = part.step.writes
        total = self._sum(f"t{made}", self.run.layouts[made])
        if total is not None:
            for read in part.step.reads:
                self.arrived.setdefault(self.line.names[read], []).append((total, self.run.layouts[made]))

    def _stage(self, index: int, part: CompiledStage) -> None:
        code, unit, names = part.halves, part.unit, self.line.names
        if part.reverse is None or code.cotangents is None or code.wide is None:
            return
        outputs = [names[place] for place in unit.block.writes]
        wanted = {i: code.kinds[i].dense() for i in (*code.cotangents, *code.wide)}
        if not any(outputs[i] in self.arrived for i in wanted):
            return
        sums = {i: self._sum(outputs[i], layout) or self._zero(layout) for i, layout in wanted.items()}
        arguments = []
        for kind, i in code.wants:
            if kind == COTANGENT:
                arguments.append(self._fitted(sums[i], wanted[i], code.cotangents[i]))
            elif kind == WIDE:
                arguments.append(self._wide(sums[i], code.wide[i]))
            else:
                arguments.append(self._kept(index, part, kind, i))
        made = [f"c{self.count}_{j}" for j in range(len(code.given))]
        self.count += 1
        run = self.source.hold("r", part.reverse)
        self.source.call(made, run, [f"[{', '.join(arguments)}]"])
        for name, position, layout in zip(made, code.gives, code.given):
            target = names[unit.block.reads[position]]
            self.arrived.setdefault(target, []).append((name, layout))

    def _kept(self, index: int, part: CompiledStage, kind: str, i: int) -> str:
        """What the reverse code of a stage wants of the forward pass."""
        name = self.line.names[part.unit.block.reads[i]] if kind == READ else variable(index, kind, i)
        kept = f"s[{self.line.kept[name]}]"
        if name not in self.line.entered:
            return kept
        if name not in self.fitted:  # what entered may lie in memory in another way at this call
            want = part.halves.layouts[i]
            self.fitted.add(name)
            self.source.lines.append(f"{name} = {fitted(self.source, kept, want)}")
        return name

    def _wide(self, message: str, want: Layout) -> str:
        """A message repeated along rows, once for all that want it."""
        key = message, want.shape
        if key not in self.wide:
            self.wide[key], self.count = f"c{self.count}", self.count + 1
            self.source.lines.append(
                f"{self.wide[key]} = {self.source.hold('wide', widened)}({message}, {want.shape[1]})"
            )
        return self.wide[key]

    def _sum(self, name: str, want: Layout) -> str | None:
        """A variable for the sum of what has arrived at a value, which is taken; None if nothing has."""
        arrived = self.arrived.pop(name, None)
        if arrived is None:
            return None
        if len(arrived) == 1:
            return self._fitted(*arrived[0], want)
        variable, self.count = f"c{self.count}", self.count + 1
        small = torch.Size(want.shape).numel() <= SMALL and len(arrived) >= FEWEST
        terms = [self._fitted(*each, want) for each in arrived]
        total = f"{self.source.hold('sum', _stacked)}([{', '.join(terms)}])" if small else " + ".join(terms)
        self.source.lines.append(f"{variable} = {total}")
        return variable

    def _fitted(self, variable: str, have: Layout | None, want: Layout) -> str:
        if have is not None and not needs_fit(have, want):
            return variable
        return fitted(self.source, variable, want)

    def _zero(self, want: Layout) -> str:
        zero = torch.empty_strided(want.shape, want.stride, dtype=want.dtype, device=want.device).zero_()
        return self.source.hold("zero", zero)


def _stacked(terms: list[Tensor]) -> Tensor:
    return torch.stack(terms).sum(0)


def widened(message: Tensor, width: int) -> Tensor:
    """[batch] → [batch, row], repeated."""
    return message.unsqueeze(1).expand(-1, width).contiguous()
