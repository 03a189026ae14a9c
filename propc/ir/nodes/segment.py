"""Segments: what is deterministic, between the marks."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch.fx

from propc.fx.dependence import Dependence
from propc.fx.operations import is_random, step_name
from propc.ir.nodes.look import Look, Words, small
from propc.ir.nodes.node import Graph, Kind, Node, Plates, listed
from propc.ir.reach import Reach
from propc.ir.records import Ref


@dataclass(frozen=True, slots=True)
class Stage:
    """A distinct piece of code, compiled once and used by every equal segment."""

    name: str
    module: torch.fx.GraphModule


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment(Node):
    """A deterministic piece of the program between sites.

    `body` are its torch.fx nodes in program order, `arguments` and `results` the
    torch.fx nodes that its inputs and outputs stand for; `stage` is set by
    deduplicate-stages. `spread` are the plates of each output; empty where no input is in a plate. `rows` are how many
    of the batch it takes at once, set by chunk-batch; 0 is all.
    """

    kind: ClassVar[Kind] = Kind.SEGMENT
    ends_repeat: ClassVar[bool] = False

    body: tuple[torch.fx.Node, ...] = field(repr=False)
    arguments: tuple[torch.fx.Node, ...] = field(repr=False)
    results: tuple[torch.fx.Node, ...] = field(repr=False)
    dependence: tuple[Dependence, ...] = field(repr=False)
    stage: Stage | None = None
    spread: tuple[tuple[str, ...], ...] = ()
    rows: int = 0

    @property
    def label(self) -> str:
        return self.stage.name if self.stage is not None else self.called

    @property
    def operations(self) -> list[str]:
        """Names of its operations, in order."""
        names = (step_name(step) for step in self.body)
        return [name.strip("_") for name in names if name != "getitem"]

    def depends(self, port: int) -> Sequence[Ref]:
        mask = self.dependence[port].any
        return [ref for i, ref in enumerate(self.inputs) if mask >> i & 1]

    def reach(self, given: Sequence[Reach], own: int) -> Sequence[Reach]:
        return [_through(dependence, given) for dependence in self.dependence]

    def carrying(self, union: Plates) -> Segment:
        """Each output in the plates of what it depends on. Where numbers are drawn, each element draws its own."""
        plates = union(self.inputs)
        if not plates:
            return replace(self, plates=(), spread=())
        if any(map(is_random, self.body)):
            return replace(self, plates=plates, spread=(plates,) * len(self.outputs))
        return replace(self, plates=plates, spread=tuple(union(self.depends(i)) for i in range(len(self.outputs))))

    def plates_of(self, port: int, of: Callable[[Ref], tuple[str, ...]]) -> tuple[str, ...]:
        return self.spread[port] if self.spread else self.plates

    def key(self) -> Hashable:
        return id(self.stage), self.dependence, self.spread

    def drawn_as(self) -> Hashable:
        return self.stage.name if self.stage is not None else tuple(self.operations)

    @property
    def why_once(self) -> str:
        return "draws from a generator of its own" if any("generator" in step.kwargs for step in self.body) else ""

    def problems(self, graph: Graph) -> Iterator[str]:
        if len(self.inputs) != len(self.arguments) or len(self.outputs) != len(self.results):
            yield f"segment {self.name!r} has inputs or outputs that its code does not have"
        if len(self.dependence) != len(self.outputs):
            yield f"segment {self.name!r} does not say what its outputs depend on"

    def text(self, graph: Graph) -> str:
        name = f"segment {self.stage.name}" if self.stage is not None else "segment"
        rows = f", {self.rows} rows at once" if self.rows else ""
        return f"{name}({listed(graph, self.inputs)}) {{{', '.join(self.operations)}}}{rows}"

    def look(self, graph: Graph) -> Look:
        """Its operations on a few short lines, and its stage."""
        names = self.operations
        if len(names) > 14:
            names = [*names[:8], f"… {len(names) - 11} more …", *names[-3:]]
        lines = textwrap.wrap(", ".join(names), 30, break_long_words=False) or ["views"]  # only taking values apart
        stage = [small(self.stage.name)] if self.stage is not None else []
        return Look(tuple((each,) for each in (*map(Words, lines), *stage)), {})


def _through(dependence: Dependence, given: Sequence[Reach]) -> Reach:
    """What reaches an output, by what it depends on."""
    every = smooth = rough = parents = leaves = ancestors = near = 0
    for i, reach in enumerate(given):
        if dependence.any >> i & 1:
            every |= reach.any
            rough |= reach.rough
            ancestors |= reach.ancestors
            near |= reach.near
        if dependence.smooth >> i & 1:
            smooth |= reach.smooth
            parents |= reach.parents
            leaves |= reach.leaves
        if dependence.rough >> i & 1:
            rough |= reach.any
    return Reach(every, smooth, rough, parents, leaves, ancestors, near)
