"""What is returned: some of it takes no gradient, costs perhaps a rehearsed reverse pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

from torch import Tensor

from propc.ir.graph import PropagationGraph
from propc.ir.nodes.output import Output
from propc.propagators import SitePropagator
from propc.runtime.autograd.tokens import guard
from propc.runtime.lowering.lowering import Lowering, lowers
from propc.runtime.lowering.planner import Planner
from propc.runtime.plan.step import Step, Values, same
from propc.runtime.weighting.two_pass import rehearsed

Guards = Mapping[int, tuple[str, str, str]]


@lowers(Output)
class OutputLowering(Lowering):
    """On other draws nobody reads it."""

    def step(self, planner: Planner, node: Output) -> Step:
        guards = _guards(planner.graph, node)
        if planner.sites.rehearsal is not None:
            return _rehearsing(planner, node, guards)
        return planner.step(node, partial(_guarded, guards) if guards else same)

    def replayed(self, planner: Planner, step: Step, first: Values) -> None:
        return None

    def obstacle(self, planner: Planner, node: Output) -> str:
        if planner.sites.rehearsal is not None:
            return "its reverse pass is rehearsed"
        return "it returns a value that must not take a gradient"


def _rehearsing(planner: Planner, node: Output, guards: Guards) -> Step:
    """Returned costs, whose reverse pass is rehearsed."""
    count, sites = len(node.inputs), planner.sites
    costs = [i for i, aside in enumerate(node.guarded) if not aside]

    def run(*given: Tensor) -> Sequence[Tensor]:
        assert sites.rehearsal is not None
        returned, leaves = _guarded(guards, *given[:count]), given[count:]
        for i, cost in zip(costs, rehearsed(sites.rehearsal, leaves, [returned[i] for i in costs])):
            returned[i] = cost
        return returned

    return planner.step(node, run, *planner.places.given)


def _guards(graph: PropagationGraph, node: Output) -> Guards:
    """For each returned value that is no cost what to say when a gradient arrives there."""
    found = {}
    for i, (ref, aside) in enumerate(zip(node.inputs, node.guarded)):
        upstream = graph.influence.upstream(ref) if aside else ()
        scored = [s for s in upstream if isinstance(rule := graph[s].propagator, SitePropagator) and rule.inlets]
        if scored:
            found[i] = node.paths[i], ", ".join(map(repr, scored)), str(node.where)
    return found


def _guarded(guards: Guards, *given: Tensor) -> list[Tensor]:
    """Returned values, some of which take no gradient."""
    returned = list(given)
    for i, words in guards.items():
        value = returned[i]
        if value.is_floating_point():
            returned[i] = guard(value if value.requires_grad else value.detach().requires_grad_(), *words)
    return returned
