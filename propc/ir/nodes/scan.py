"""Scans: steps that are all alike."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

from propc.ir.nodes.look import LINE, PAPER, QUIET, Look, Words
from propc.ir.nodes.node import Graph, Kind, Node, listed
from propc.ir.reach import Reach
from propc.ir.records import Carried, Ref


@dataclass(frozen=True, slots=True, kw_only=True)
class Scan(Node):
    """Steps of a `propc.scan` that are all alike: the nodes of one, run `length` times; inserted by roll-scans.

    Attributes:
        inputs: the carried values before the first step; the outputs are what they are in each.
        body: the nodes of the step, which stand right behind this one.
        again: what becomes of the carried values in the step, as they are in the next.
        tokens: carried sums of tokens; `Token(name, i)` is what the i-th is in each step.
        blocks: of steps, of which all but the last run again in the reverse pass in place of being kept.
    """

    kind: ClassVar[Kind] = Kind.SCAN
    foldable: ClassVar[bool] = False

    body: tuple[str, ...]
    again: tuple[Ref, ...]
    length: int
    tokens: tuple[Carried, ...] = ()
    blocks: int = 1

    def reach(self, given: Sequence[Reach], own: int) -> Sequence[Reach]:
        """What reaches the carried values before the first step; `graph.influence` adds what the steps do."""
        return given

    def plates_of(self, port: int, of: Callable[[Ref], tuple[str, ...]]) -> tuple[str, ...]:
        return of(self.inputs[port])

    def problems(self, graph: Graph) -> Iterator[str]:
        """Its step stands right behind it, and makes what the next step reads."""
        names = list(graph.nodes)
        start = names.index(self.name) + 1
        if tuple(names[start : start + len(self.body)]) != self.body:
            yield f"the step of scan {self.name!r} ({self.where}) does not stand right behind it"
        inside = {self.name, *self.body}
        for made, first, again in zip(self.made, self.inputs, self.again):
            refs = [ref for ref in (made, first, again) if ref.node in graph.nodes]
            kinds = [graph.nodes[ref.node].outputs[ref.port] for ref in refs]
            if len(kinds) < 3 or len(set(kinds)) > 1:
                yield f"scan {self.name!r} ({self.where}) carries {first}, which becomes {again} of another type"
            elif again.node not in inside:
                yield f"scan {self.name!r} ({self.where}) carries {again}, which its step does not make"
        if self.length < 1 or len(self.again) != len(self.inputs):
            yield f"scan {self.name!r} ({self.where}) has {self.length} steps and carries what it does not make"

    @property
    def in_blocks(self) -> str:
        """In how many blocks it runs, in words; nothing where it is one."""
        return f" in {self.blocks} blocks" if self.blocks > 1 else ""

    def text(self, graph: Graph) -> str:
        again = listed(graph, self.again)
        return f"scan of {self.length} steps{self.in_blocks} ({listed(graph, self.inputs)}), then ({again})"

    def look(self, graph: Graph) -> Look:
        count = len(self.outputs)
        return Look(
            ((Words(f"carries {count} value{'' if count == 1 else 's'}", QUIET, 9),),),
            {"style": "filled,rounded", "color": LINE, "fillcolor": PAPER, "margin": "0.04,0.03"},
        )

    def frame(self) -> Look:
        """What is drawn round its step."""
        return Look(
            ((Words(self.name, bold=True),), (Words(f"{self.length} times{self.in_blocks}", QUIET, 10),)),
            {"style": "rounded,dashed", "color": LINE, "labeljust": "l"},
        )
