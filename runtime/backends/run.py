"""A run of compiled stages as one autograd function: its forward and its reverse pass are a straight line of calls.

Tokens hold nothing, so here they do not exist: a cost's reverse code gives its messages, and the line of the reverse
pass hands each to the reverse code of the sites that it is routed to, adding up what meets.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from propc.errors import EstimatorError, message
from propc.ir import Site
from propc.propagators import InverseVariance
from propc.runtime.backends.base import Named, Several, Violated
from propc.runtime.backends.joint import COTANGENT, NOISE, READ, RESULT, WIDE, Halves, Layout
from propc.runtime.backends.units import Unit, Wire
from propc.runtime.blocks import Block
from propc.runtime.gates import applied
from propc.runtime.noise import from_state, state_unless_captured
from propc.runtime.straight import Values

Half = Callable[[list[Tensor]], Sequence[Tensor]]
SMALL = 1024  # elements; many cotangents on a tensor of up to so many are stacked, and summed once


_VARIABLE = re.compile(r"\b[cnuv]\d+(?:_\d+)?\b")


@dataclass(frozen=True)
class Stage:
    """A compiled unit: its halves, and what runs them.

    Attributes:
        flagged: whether its last output says that the parameters of its site are valid.
    """

    unit: Unit
    halves: Halves
    forward: Half
    reverse: Half | None
    flagged: bool = False


class Run(Several):
    """Consecutive stages, and the wires between them, as the function of one call.

    Args:
        parts: in order.
        whole: their calls, with what enters and leaves.
        entering: the layouts of what enters.
        tokens: the places of tokens.
        layouts: of everything, by place.
    """

    def __init__(
        self,
        parts: Sequence[Stage | Wire],
        whole: Block,
        entering: Sequence[Layout],
        tokens: frozenset[int],
        layouts: Mapping[int, Layout],
    ) -> None:
        self.parts, self.whole, self.entering, self.tokens, self.layouts = parts, whole, entering, tokens, layouts
        self.device = next((layout.device for layout in layouts.values()), torch.device("cpu"))
        sites = [
            node for part in parts if isinstance(part, Stage) for node in part.unit.nodes if isinstance(node, Site)
        ]
        self.weighing = next((site for site in sites if isinstance(site.rule, InverseVariance)), None)
        line = _Forward(self)
        self.names, self.kept, self.entered = line.names, line.kept, line.entered
        self.leaving = tuple(dict.fromkeys(line.leaving))
        self.wants = tuple(line.wants[name] for name in self.leaving)
        self.order = [
            whole.reads.index(line.entered[name])
            if name in line.entered
            else len(whole.reads) + self.leaving.index(name)
            for name in line.leaving_all
        ]
        self.forward: Callable[..., tuple[tuple[Tensor, ...], tuple[Tensor, ...], tuple[Tensor, ...]]] = line.made()
        self.reverses: dict[Hashable, Callable[..., tuple[Tensor | None, ...]]] = {}

    def __call__(self, *given: Tensor) -> list[Tensor]:
        """Run; what leaves, in the order of the block."""
        if torch.is_grad_enabled() and any(layout.requires_grad for layout in self.entering):
            found = _run(self, *given)
        else:
            found = self.values(given)[0]
        both = (*given, *found)
        return [both[i] for i in self.order]

    def named(self) -> Named:
        from propc.runtime.backends.heard import heard

        return heard(self)

    def values(self, given: Sequence[Tensor]) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """What leaves, and what the reverse pass needs.

        Raises:
            Violated: a parameter of a site is not in its support.
        """
        found, kept, flags = self.forward(*given)
        if flags and not all(map(bool, flags)):
            raise Violated
        return found, kept

    def cotangents(self, kept: Sequence[Tensor], arrived: Sequence[Tensor | None]) -> tuple[Tensor | None, ...]:
        """Cotangents on what has entered, from those on what left."""
        pattern = tuple(each is not None for each in arrived)
        if pattern not in self.reverses:
            self.reverses[pattern] = _Reverse(self, pattern).made()
        return self.reverses[pattern](kept, arrived)

    def again(self, given: Sequence[Tensor], seed: Tensor) -> list[Tensor]:
        """What leaves, step by step, from the random numbers of an earlier run: for derivatives of any order."""
        values: Values = [None] * (1 + max((*self.whole.reads, *(i for call in self.whole.calls for i in call.writes))))
        for place, value in zip(self.whole.reads, given):
            values[place] = value
        with from_state(self.device, seed):
            for call in self.whole.calls:
                call(values)
        return [values[place] for place in self.whole.writes]


class _Run(Function):
    @staticmethod
    def forward(ctx: Any, run: Run, *given: Tensor) -> tuple[Tensor, ...]:
        ctx.run, ctx.seed, ctx.count = run, state_unless_captured(run.device), len(given)
        found, kept = run.values(given)
        ctx.save_for_backward(*given, *kept)
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*(value for value, wants in zip(found, run.wants) if not wants))
        return found

    @staticmethod
    def backward(ctx: Any, *arrived: Tensor | None) -> tuple[Tensor | None, ...]:
        run: Run = ctx.run
        kept = ctx.saved_tensors
        if torch.is_grad_enabled():
            return (None, *_differentiable(run, kept[: ctx.count], arrived, ctx.seed))
        return (None, *run.cotangents(kept, arrived))


_run = applied(_Run)


def _differentiable(
    run: Run, given: Sequence[Tensor], arrived: Sequence[Tensor | None], seed: Tensor
) -> Sequence[Tensor | None]:
    """Cotangents that can be differentiated again: the steps run once more, one by one.

    Raises:
        EstimatorError: the run has a site that weighs by the variance of what arrives. The second reverse pass would
            meet it twice, each time with a part, and weigh each by itself; on `eager` it meets it once.
    """
    if run.weighing is not None:
        finding = "second derivatives of an inverse-variance weighting, which compiled code does not give"
        fix = "Use backend='eager'; or 'rp' or 'lr' here."
        raise EstimatorError(message(finding, fix, at=f"site {run.weighing.name!r}", where=run.weighing.where))
    given = [value.view_as(value) if value.requires_grad else value for value in given]  # no gradient goes past them
    found = run.again(given, seed)
    ends = dict(zip((i for i in run.order), found))
    live = [
        (ends[len(given) + i], grad)
        for i, grad in enumerate(arrived)
        if grad is not None and ends[len(given) + i].requires_grad
    ]
    wanted = [i for i, value in enumerate(given) if value.requires_grad]
    if not live or not wanted:
        return [None] * len(given)
    outputs, cotangents = zip(*live)
    grads = torch.autograd.grad(outputs, [given[i] for i in wanted], cotangents, create_graph=True, allow_unused=True)
    by_place = dict(zip(wanted, grads))
    return [by_place.get(i) for i in range(len(given))]


def fit(value: Tensor, shape: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
    """A tensor with the strides that compiled code was told of."""
    if value.stride() == stride:
        return value
    return torch.empty_strided(shape, stride, dtype=value.dtype, device=value.device).copy_(value)


@dataclass
class _Source:
    """Source of a function, with the objects that it names."""

    lines: list[str] = field(default_factory=list)
    objects: dict[str, Any] = field(default_factory=dict)

    def hold(self, prefix: str, value: Any) -> str:
        """A name for an object."""
        name = f"{prefix}{len(self.objects)}"
        self.objects[name] = value
        return name

    def function(self, header: str) -> Any:
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
        exec(compile("\n".join([f"def line({header}):", *lines]), "<propc run>", "exec"), self.objects)
        return self.objects["line"]


def variable(index: int, kind: str, i: int) -> str:
    """The variable of noise or a result of a stage."""
    return f"{'n' if kind == NOISE else 'u'}{index}_{i}"


def widened(message: Tensor, width: int) -> Tensor:
    """[batch] → [batch, row], repeated."""
    return message.unsqueeze(1).expand(-1, width).contiguous()


def _needs_fit(have: Layout, want: Layout) -> bool:
    """Whether strides differ where they matter."""
    differs = (h != w for h, w, size in zip(have.stride, want.stride, have.shape) if size > 1)
    return any(differs)


class _Forward:
    """The line of the forward pass.

    Attributes:
        names: the variable of the value at each place.
        kept: variables that the reverse pass needs, by their position among what is saved.
        leaving, leaving_all: variables of what leaves and is made here; of all that leaves.
    """

    def __init__(self, run: Run) -> None:
        self.run, self.source = run, _Source()
        self.names: dict[int, str] = {}
        self.layouts: dict[str, Layout] = {}
        self.entered: dict[str, int] = {}
        self.wants: dict[str, bool] = {}
        for place, layout in zip(run.whole.reads, run.entering):
            self._enter(place, layout)
        self.flags: list[str] = []
        self.used: dict[str, None] = {}
        for i, part in enumerate(run.parts):
            if isinstance(part, Wire):
                self._wire(part)
            else:
                self._stage(i, part)
        self.leaving_all = [self._leave(place) for place in run.whole.writes]
        self.leaving = [name for name in self.leaving_all if name not in self.entered]
        entering = [self.names[place] for place in run.whole.reads]
        self.kept = {name: i for i, name in enumerate((*entering, *(n for n in self.used if n not in self.entered)))}

    def made(self) -> Any:
        """The function: from what enters to what leaves, what the reverse pass needs, and flags."""
        leaving = tuple(dict.fromkeys(self.leaving))
        extra = [name for name in self.kept if name not in self.entered]
        self.source.lines.append(f"return {_tuple(leaving)}, {_tuple(extra)}, {_tuple(self.flags)}")
        return self.source.function(", ".join(self.names_of_entering))

    @property
    def names_of_entering(self) -> list[str]:
        return list(self.entered)

    def _enter(self, place: int, layout: Layout) -> None:
        name = self.names[place] = f"v{place}"
        self.layouts[name], self.entered[name], self.wants[name] = layout, place, layout.requires_grad
        if place not in self.run.tokens:
            check = self.source.hold("fit", fit)
            self.source.lines.append(
                f"if {name}.stride() != {layout.stride}: {name} = {check}({name}, {layout.shape}, {layout.stride})"
            )

    def _wire(self, part: Wire) -> None:
        if part.joins:
            (made,) = part.call.writes
            self.names[made] = f"t{made}"
        else:
            for read, made in zip(part.call.reads, part.call.writes):
                self.names[made] = self.names[read]

    def _stage(self, index: int, part: Stage) -> None:
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
        self.source.lines.append(f"{_tuple(made, bare=True)} = {run}([{', '.join(arguments)}])")
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
        if not _needs_fit(self.layouts[name], want):
            return name
        return f"{self.source.hold('fit', fit)}({name}, {want.shape}, {want.stride})"

    def _leave(self, place: int) -> str:
        name = self.names[place]
        if place in self.run.tokens and name not in self.entered and name not in self.layouts:
            layout = self.run.layouts[place]
            zero = torch.zeros((), dtype=layout.dtype, device=layout.device).expand(layout.shape)
            self.source.lines.append(f"{name} = {self.source.hold('zero', zero)}.detach()")
            self.layouts[name], self.wants[name] = layout, True
        return name


class _Reverse:
    """The line of the reverse pass, where cotangents arrive at some of what left."""

    def __init__(self, run: Run, pattern: Sequence[bool]) -> None:
        self.run, self.source = run, _Source()
        self.arrived: dict[str, list[tuple[str, Layout | None]]] = {}
        self.fitted: set[str] = set()
        self.wide: dict[tuple[str, tuple[int, ...]], str] = {}
        self.count = 0
        for i, (name, there) in enumerate(zip(run.leaving, pattern)):
            if there:
                self.arrived.setdefault(name, []).append((f"g[{i}]", None))
        for index in reversed(range(len(run.parts))):
            part = run.parts[index]
            if isinstance(part, Wire):
                self._wire(part)
            else:
                self._stage(index, part)

    def made(self) -> Any:
        """The function: from what was kept and what arrived to cotangents on what entered."""
        found = [
            self._sum(self.run.names[place], layout) or "None" if layout.requires_grad else "None"
            for place, layout in zip(self.run.whole.reads, self.run.entering)
        ]
        self.source.lines.append(f"return {_tuple(found)}")
        return self.source.function("s, g")

    def _wire(self, part: Wire) -> None:
        if not part.joins:
            return
        (made,) = part.call.writes
        total = self._sum(f"t{made}", self.run.layouts[made])
        if total is not None:
            for read in part.call.reads:
                self.arrived.setdefault(self.run.names[read], []).append((total, self.run.layouts[made]))

    def _stage(self, index: int, part: Stage) -> None:
        code, unit, names = part.halves, part.unit, self.run.names
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
        self.source.lines.append(f"{_tuple(made, bare=True)} = {run}([{', '.join(arguments)}])")
        for name, position, layout in zip(made, code.gives, code.given):
            target = names[unit.block.reads[position]]
            self.arrived.setdefault(target, []).append((name, layout))

    def _kept(self, index: int, part: Stage, kind: str, i: int) -> str:
        """What the reverse code of a stage wants of the forward pass."""
        name = self.run.names[part.unit.block.reads[i]] if kind == READ else variable(index, kind, i)
        kept = f"s[{self.run.kept[name]}]"
        if name not in self.run.entered:
            return kept
        if name not in self.fitted:  # what entered may lie in memory in another way at this call
            want = part.halves.layouts[i]
            self.fitted.add(name)
            self.source.lines.append(f"{name} = {self.source.hold('fit', fit)}({kept}, {want.shape}, {want.stride})")
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
        small = torch.Size(want.shape).numel() <= SMALL and len(arrived) > 3
        terms = [self._fitted(*each, want) for each in arrived]
        total = f"{self.source.hold('sum', _stacked)}([{', '.join(terms)}])" if small else " + ".join(terms)
        self.source.lines.append(f"{variable} = {total}")
        return variable

    def _fitted(self, variable: str, have: Layout | None, want: Layout) -> str:
        if have is not None and not _needs_fit(have, want):
            return variable
        return f"{self.source.hold('fit', fit)}({variable}, {want.shape}, {want.stride})"

    def _zero(self, want: Layout) -> str:
        zero = torch.empty_strided(want.shape, want.stride, dtype=want.dtype, device=want.device).zero_()
        return self.source.hold("zero", zero)


def _stacked(terms: list[Tensor]) -> Tensor:
    return torch.stack(terms).sum(0)


def _tuple(names: Iterable[str], bare: bool = False) -> str:
    listed = "".join(f"{name}, " for name in names)
    return listed.rstrip() if bare and listed else f"({listed})"
