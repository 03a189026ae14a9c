"""Hearing what every site sends to its φ, without changing it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from propc.ir.nodes.site import Site
from propc.runtime.plan.step import Plan, Step

Place = tuple[str, int]  # a site, and the position of one of its φ


class Probe:
    """Collects the cotangents that sites send to their φ; what others send to the same tensors is not heard.

    Attributes:
        heard: since the last `take`, by site and position of φ.
    """

    def __init__(self) -> None:
        self.heard: dict[Place, Tensor] = {}

    def around(self, step: Step) -> Step:
        """A site's step on aliases of its φ, whose cotangents are heard; other steps as they are."""
        if not isinstance(step.node, Site):
            return step
        name, run, count = step.node.name, step.function, len(step.node.inputs)

        def listening(*given: Any) -> Sequence[Any]:
            aliases = [self._alias(name, i, phi) for i, phi in enumerate(given[:count])]
            return run(*aliases, *given[count:])

        return replace(step, function=listening)

    def _alias(self, site: str, position: int, phi: Tensor) -> Tensor:
        if not (phi.requires_grad and torch.is_grad_enabled()):
            return phi
        alias = phi.view_as(phi)
        listen: Callable[[Tensor], None] = partial(self.hear, site, position)
        alias.register_hook(listen)
        return alias

    def hear(self, site: str, position: int, cotangent: Tensor) -> None:
        """Add a cotangent to what the site has sent."""
        known = self.heard.get((site, position))
        self.heard[site, position] = cotangent if known is None else known + cotangent

    def take(self) -> dict[Place, Tensor]:
        """What was heard since the last time."""
        heard, self.heard = self.heard, {}
        return heard


def probed(plan: Plan, probe: Probe | None) -> Plan:
    """The plan with sites that let a probe hear; without a probe as it is."""
    return plan if probe is None else [probe.around(step) for step in plan]
