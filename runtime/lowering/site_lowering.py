"""Sites: they draw by their rule, alone or in plates."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from functools import partial
from typing import ClassVar

from torch import Tensor

from propc.ir.nodes.site import Site
from propc.propagators import Draw, SiteContext
from propc.runtime.checks import values as checks
from propc.runtime.lowering.first_draw import looking
from propc.runtime.lowering.lowering import Lowering, lowers
from propc.runtime.lowering.planner import Planner
from propc.runtime.plan.step import Step, Values


@lowers(Site)
class SiteLowering(Lowering):
    """On other draws they are given."""

    ends_stage: ClassVar[bool] = True

    def step(self, planner: Planner, node: Site) -> Step:
        return _placed(planner, node) if node.name in planner.sites.placings else _alone(planner, node)

    def replayed(self, planner: Planner, step: Step, first: Values) -> None:
        return None

    def obstacle(self, planner: Planner, node: Site) -> str:
        rule, sites = node.rule, planner.sites
        if rule is None or not rule.traceable:
            return "a propagator that is not known to be traceable"
        if sites.contexts[node.name].state is not None:
            return "its estimator keeps something from call to call"
        if rule.rehearses:
            return "its weights come from a rehearsal of the reverse pass"
        if rule.shares_weights:
            return "sites share their weights"
        if node.name in sites.placings and sites.placings[node.name].shared:
            return "elements of its plate draw from the same random numbers"
        return ""

    def key(self, planner: Planner, node: Site) -> Hashable:
        tangents = tuple(ref is not None for ref in node.tangents)
        checked = tuple(i for i, _ in planner.sites.bounds.get(node.name, ()))
        own = node.rule, node.spec, node.plate, node.alternatives, node.copy_of
        return "site", *own, planner.plates(node), tangents, checked


def _alone(planner: Planner, node: Site) -> Step:
    rule, mode, count = node.rule, planner.mode, len(node.inputs)
    assert rule is not None
    later = planner.sites.bounds.get(node.name, ())
    tangents = {i: planner.places.slots[ref] for i, ref in enumerate(node.tangents) if ref is not None}
    none, positions = (None,) * count, range(len(node.tangents))
    context, draw_by = planner.sites.find(node.name), looking(planner, node, rule)

    def run(*given: Tensor) -> tuple[Tensor, ...]:
        phi = given[:count]
        if mode.validate and (later or not mode.checked):
            checks.site_check(node, phi, later if mode.checked else node.spec.checks)
        known = dict(zip(tangents, given[count:])) if tangents else None
        draw = draw_by(context(), phi, none if known is None else [known.get(i) for i in positions])
        return (draw.value, *draw.tokens)

    return planner.step(node, run, *tangents.values())


def _placed(planner: Planner, node: Site) -> Step:
    """A site in plates."""
    rule, mode, placing = node.rule, planner.mode, planner.sites.placings[node.name]
    assert rule is not None
    later = planner.sites.bounds.get(node.name, ())
    none, find, draw_by = (None,) * len(node.inputs), planner.sites.find(node.name), looking(planner, node, rule)

    def draw(context: SiteContext, phi: Sequence[Tensor]) -> Draw:
        drawn: Draw = draw_by(context, phi, none)
        return drawn

    place = draw if placing.plain else partial(placing.draw, draw)

    def run(*phi: Tensor) -> tuple[Tensor, ...]:
        if mode.validate and (later or not mode.checked):
            checks.site_check(node, phi, later if mode.checked else node.spec.checks)
        drawn = place(find(), phi)
        if not mode.checked:
            placing.check(drawn.value)
        beside = (drawn.weights, drawn.alternatives)
        return (drawn.value, *(values for values in beside if values is not None), *drawn.tokens)

    return planner.step(node, run)
