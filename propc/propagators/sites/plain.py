"""A draw through which no gradient goes: nothing before the site wants one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from propc.distributions.sampling import draw_detached
from propc.ir.nodes.site import Site
from propc.ir.rules import SiteRule
from propc.propagators.sites.samples import ONE, Samples
from propc.propagators.sites.site_propagator import Draw, SiteContext, SitePropagator
from propc.types import Plate


@dataclass(frozen=True)
class Plain(SitePropagator):
    """Only draws. Assigned where no parameter lies behind the site, or no cost after it.

    Attributes:
        samples: how often.
        relaxed: the rule that draws in the distribution's place, where the program runs on relaxed draws.
    """

    name: ClassVar[str] = "plain"
    samples: Samples = ONE
    relaxed: SitePropagator | None = None

    def state(self, node: Any) -> nn.Module | None:
        return None if self.relaxed is None else self.relaxed.state(node)

    def plate(self, site: Site, batched: bool) -> Plate | None:
        return self.samples.plate(site.name)

    def draw(self, site: SiteContext, phi: Sequence[Tensor], tangents: Sequence[Tensor | None]) -> Draw:
        if self.relaxed is None:
            return Draw(draw_detached(site.build(phi), site.sample_shape))
        with torch.no_grad():
            return self.relaxed.draw(site, phi, tangents)


def plain(rule: SiteRule | None) -> Plain:
    """What is left of a rule where no gradient passes: the draw alone."""
    if isinstance(rule, Plain):
        return rule
    return Plain(relaxed=rule if isinstance(rule, SitePropagator) and rule.relaxes else None)
