"""Pause: collects what several consumers send, and sends once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from propc.propagators.propagator import Propagator
from propc.propagators.registry import register_propagator


@register_propagator("pause")
@dataclass(frozen=True)
class Pause(Propagator):
    """The cotangents of all consumers of the value arrive as one sum and go on once.

    propc visits every node once, after all who send to it, so what is before a shared value is never
    traversed twice; a pause keeps the place visible in the graph, and keeps what is before it and what is
    after it two stages.
    """

    name: ClassVar[str] = "pause"

    @property
    def idle(self) -> bool:
        return False
