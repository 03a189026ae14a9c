"""Compare nodes: costs beside what they would be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from propc.ir.nodes.node import Kind, Node


@dataclass(frozen=True, slots=True, kw_only=True)
class CompareAlternatives(Node):
    """A cost beside what it would be on alternatives of a site; inserted by explore-alternatives.

    Inputs are the cost and that of the alternatives, in the plate `over`; the value is the cost's. A route leads
    from here to the site: weight × (cost of the alternative − cost).
    """

    kind: ClassVar[Kind] = Kind.COMPARE

    over: str
