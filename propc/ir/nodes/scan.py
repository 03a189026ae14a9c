"""Scans: steps that are all alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from propc.ir.nodes.node import Kind, Node
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

    body: tuple[str, ...]
    again: tuple[Ref, ...]
    length: int
    tokens: tuple[Carried, ...] = ()
    blocks: int = 1
