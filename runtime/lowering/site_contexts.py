"""What the sites of a graph know of themselves in a call."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from functools import partial

from torch import Tensor

from propc.ir.graph import PropagationGraph
from propc.ir.nodes.site import Site
from propc.propagators import SiteContext
from propc.runtime.autograd.run_once import once
from propc.runtime.checks import values as checks
from propc.runtime.checks.kinks import has_kink
from propc.runtime.lowering.node_views import NodeViews
from propc.runtime.plates.sites import Placing
from propc.runtime.weighting.two_pass import Rehearsal


class Sites:
    """The sites of a graph.

    Args:
        views: of its nodes, and what estimators keep from call to call.
        validate: whether parameters are checked.

    Attributes:
        placings: of the sites in plates.
        rehearsal: of the reverse pass of the present call; None where no rule wants one.
        contexts: what each site knows of itself in the present call.
        bounds: constraints of parameters to be checked at every call, by site.
    """

    def __init__(self, graph: PropagationGraph, views: NodeViews, validate: bool) -> None:
        self.graph, self.views = graph, views
        self.placings = {s.name: Placing(graph, s) for s in graph.sites if s.plates or s.alternatives}
        rules = [site.rule for site in graph.sites if site.rule is not None]
        self._kinks: dict[Hashable, bool] = {}
        self._shares_weights = any(rule.shares_weights for rule in rules)
        self.rehearsal = Rehearsal() if any(rule.rehearses for rule in rules) else None
        self.contexts: dict[str, SiteContext] = {s.name: self._context(s) for s in graph.sites}
        on_cpu = (s for s in graph.sites if s.outputs[0].device.type == "cpu")  # elsewhere a check would wait for it
        found = {s.name: checks.bounds(s, graph) for s in on_cpu} if validate else {}
        self.bounds = {name: each for name, each in found.items() if each}

    def begin(self) -> None:
        """Forget the mixing weights of the last call, and its rehearsal."""
        if self._shares_weights:
            shared: dict[str, list[Tensor]] = {}
            self.contexts.update({k: replace(c, weights=shared) for k, c in self.contexts.items()})
        if self.rehearsal is not None:
            self.rehearsal = new = Rehearsal()
            self.contexts.update({k: replace(c, rehearsal=new) for k, c in self.contexts.items()})

    def find_kink(self, name: str, context: SiteContext, phi: Sequence[Tensor]) -> bool:
        """Whether the log-probability of a site has a kink, which its context says from now on."""
        key = context.spec, tuple(p.requires_grad for p in phi)
        if key not in self._kinks:
            plain = context.normal is not None or context.one_hot is not None
            self._kinks[key] = not plain and has_kink(context, phi)
        self.contexts[name] = replace(self.contexts[name], kinked=self._kinks[key])
        return self._kinks[key]

    def find(self, name: str) -> Callable[[], SiteContext]:
        """Looks up the context of a site in the present call."""
        find = partial(self.contexts.__getitem__, name)
        return partial(once, find, draws=False) if self._shares_weights else find

    def _context(self, site: Site) -> SiteContext:
        assert site.rule is not None
        memory = site.rule.state(site.spec)
        state = None if memory is None else self.views.state.part(site.copy_of or site.name, lambda: memory)
        known = site.name, site.spec, site.shape, site.where, self.graph.batch
        context = SiteContext(*known, site.spec.builder(), state)
        lead = len(self.graph.lead(site)) if site.dims else 1
        context = replace(context, view=lambda: self.views.view(site), lead=lead)
        return self.placings[site.name].context(context) if site.name in self.placings else context
