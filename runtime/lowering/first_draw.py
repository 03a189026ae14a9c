"""The first draw of a site, at which its score and its gradients are looked at."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from torch import Tensor

from propc.ir.nodes.site import Site
from propc.ir.rules import SiteRule
from propc.propagators import Draw, SiteContext
from propc.runtime.checks.gradients import watched
from propc.runtime.checks.scores import check_edges, check_mean, check_shape
from propc.runtime.lowering.planner import Planner

DrawBy = Callable[[SiteContext, Sequence[Tensor], Sequence[Tensor | None]], Draw]


def looking(planner: Planner, site: Site, rule: SiteRule) -> DrawBy:
    """A rule's `draw`, with looks at its score and its gradients in the first call."""
    draw_by: DrawBy = rule.draw
    mode, scores = planner.mode, rule.scores
    looked = False

    def draw(context: SiteContext, phi: Sequence[Tensor], tangents: Sequence[Tensor | None]) -> Draw:
        nonlocal looked
        if mode.checked or not any(p.requires_grad for p in phi):
            return draw_by(context, phi, tangents)
        if scores and not looked:
            context = replace(context, kinked=planner.sites.find_kink(site.name, context, phi))
        if mode.first and not looked:
            if rule.blind_at_edges:
                check_edges(site, phi)
            if scores:
                check_shape(site, context, phi)
                check_mean(site, context, phi)
        looked = True
        if not mode.first:
            return draw_by(context, phi, tangents)
        return watched(site, lambda seen: draw_by(context, seen, tangents), phi)

    return draw
