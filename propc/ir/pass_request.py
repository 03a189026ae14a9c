"""What estimators and propagators ask of the pipeline: a pass by its name, as passes lie above them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from propc.ir.graph import PropagationGraph


@dataclass(frozen=True)
class PassRequest:
    """A registered pass and its options; equal requests are one.

    Attributes:
        name: under which the pass is registered.
        options: of its class, by keyword.
    """

    name: str
    options: tuple[tuple[str, Any], ...] = ()

    @classmethod
    def of(cls, name: str, **options: Any) -> PassRequest:
        """With options as keywords."""
        return cls(name, tuple(options.items()))


Step = PassRequest | Callable[[PropagationGraph], PropagationGraph]
"""What an estimator or a propagator brings: a request, or a pass itself."""
