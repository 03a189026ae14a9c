"""A stage whose code is compiled."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from propc.runtime.backends.inductor.compiled_units import Unit
from propc.runtime.backends.inductor.joint_graph import Halves

Half = Callable[[list[Tensor]], Sequence[Tensor]]


@dataclass(frozen=True)
class CompiledStage:
    """A compiled unit: its halves, and what runs them.

    Attributes:
        flagged: whether its last output says that the parameters of its site are valid.
    """

    unit: Unit
    halves: Halves
    forward: Half
    reverse: Half | None
    flagged: bool = False
