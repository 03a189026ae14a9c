"""The plan of a graph: for every node, in the order of the schedule, the call that does its step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from propc.ir.graph import PropagationGraph
from propc.ir.named_dims import aligned
from propc.ir.nodes.compare_alternatives import CompareAlternatives
from propc.ir.nodes.cost import Cost
from propc.ir.nodes.expand import Expand
from propc.ir.nodes.named import Named
from propc.ir.nodes.node import Node
from propc.ir.nodes.opaque import Opaque
from propc.ir.nodes.output import Output
from propc.ir.nodes.reduce import Reduce
from propc.ir.nodes.resample import Resample
from propc.ir.nodes.scan import Scan
from propc.ir.nodes.segment import Segment
from propc.ir.nodes.site import Site
from propc.ir.records import Route, Token
from propc.ir.rules import NodeRule
from propc.propagators import Draw, SiteContext, SitePropagator
from propc.propagators.gated import through
from propc.runtime.autograd.gaussian_refit import refit
from propc.runtime.autograd.run_once import once, once_of
from propc.runtime.autograd.tokens import guard
from propc.runtime.autograd.weigh_alternatives import compared
from propc.runtime.checks import values as checks
from propc.runtime.checks.values import Mode
from propc.runtime.plan.alternative_copies import Copies
from propc.runtime.plan.codegen import StepCall, same
from propc.runtime.plan.cost_steps import Sender, sender
from propc.runtime.plan.node_memory import NodeMemory
from propc.runtime.plan.scan_loop import Loop, fitted_last, nothing
from propc.runtime.plan.slots import Places
from propc.runtime.plan.token_reads import Inlets
from propc.runtime.plates.batch_chunks import ByRows
from propc.runtime.plates.black_boxes import OpaqueCall
from propc.runtime.plates.reduce import reduced
from propc.runtime.plates.segments import Lifting, chunked
from propc.runtime.plates.sites import Placing
from propc.runtime.weighting.two_pass import Rehearsal, rehearsed
from propc.util.estimator_state import EstimatorState


class Planner:
    """Makes the plan of a graph.

    Args:
        graph: after all passes.
        state: what estimators keep from call to call.
        places: of its values and tokens.
        mode: whether steps look at values.

    Attributes:
        plan: nodes with their calls, in order; a node may have several.
        loops: the scans among them.
        routes: those of each cost.
        contexts: what each site knows of itself in the present call.
        bounds: constraints of parameters to be checked at every call, by site.
        placings: of the sites in plates.
        copies: what goes round the steps of copies.
        boxes: the black boxes.
    """

    def __init__(self, graph: PropagationGraph, state: EstimatorState, places: Places, mode: Mode) -> None:
        self.graph, self.state, self.places, self.mode = graph, state, places, mode
        self.memory = NodeMemory(graph, state)
        self.routes: dict[str, list[Route]] = {}
        for route in graph.routes:
            self.routes.setdefault(route.source, []).append(route)
        self.placings = {s.name: Placing(graph, s) for s in graph.sites if s.plates or s.alternatives}
        self.copies = Copies(graph)
        self.lift = Lifting(graph)
        self.boxes = {box.name: OpaqueCall(graph, box) for box in graph.of(Opaque)}
        rules = [site.rule for site in graph.sites if site.rule is not None]
        self.shares_weights = any(rule.shares_weights for rule in rules)
        self.rehearsal = Rehearsal() if any(rule.rehearses for rule in rules) else None
        self.contexts: dict[str, SiteContext] = {s.name: self._context(s) for s in graph.sites}
        on_cpu = (s for s in graph.sites if s.outputs[0].device.type == "cpu")  # elsewhere a check would wait for it
        found = {s.name: checks.bounds(s, graph) for s in on_cpu} if mode.validate else {}
        self.bounds = {name: each for name, each in found.items() if each}
        self.plan: list[tuple[Node, StepCall]] = []
        self.loops: list[Loop] = []
        self.inlets = Inlets(graph, places, lambda node, call: self.plan.append((node, call)))
        self._begins: dict[str, StepCall] = {}
        self._ends = {scan.body[-1]: scan for scan in graph.of(Scan)}
        for name in graph.schedule.forward:
            self._add(graph[name])

    def begin(self) -> None:
        """Forget the mixing weights of the last call, and its rehearsal."""
        if self.shares_weights:
            shared: dict[str, list[Tensor]] = {}
            self.contexts.update({k: replace(c, weights=shared) for k, c in self.contexts.items()})
        if self.rehearsal is not None:
            self.rehearsal = new = Rehearsal()
            self.contexts.update({k: replace(c, rehearsal=new) for k, c in self.contexts.items()})

    def _add(self, node: Node) -> None:
        """Append a node's step to the plan, after those of the joins that it is the first to read."""
        call = self._step(node)
        if call is not None:
            self.plan.append((node, self.copies.around(node, call)))
        scan = self._ends.get(node.name)
        if scan is not None:
            self._close(scan)

    def _step(self, node: Node) -> StepCall | None:
        make = next((make for kind, make in _STEPS.items() if isinstance(node, kind)), None)
        return None if make is None else make(self, node)

    def _call(self, node: Node, run: Callable[..., Sequence[Any]], *more: int) -> StepCall:
        """A call that reads what the node does, and more, and makes what the node does."""
        return StepCall(run, (*self.places.reads(node), *more), self.places.writes(node))

    # -- segments, boxes, what has no randomness ---------------------------------------------

    def _segment(self, node: Segment) -> StepCall:
        assert node.stage is not None
        if node.rows:
            return self._call(node, ByRows(self.graph, node, lambda: self.mode.first))
        return self._call(node, self.lift(node) if node.plates else node.stage.module.forward)

    def _named(self, node: Named) -> StepCall:
        rule = node.rule
        if rule is None or rule.idle:
            return self._call(node, same)
        return self._call(node, partial(_through, rule, self.memory, node))

    def _opaque(self, node: Opaque) -> StepCall:
        box = self.boxes[node.name]
        spread = (node.plates,) * len(node.outputs)
        return self._call(node, once_of(chunked(self.graph, box.call, box.reads, spread) if box.folds else box.call))

    def _expand(self, node: Expand) -> StepCall:
        return self._call(node, torch.no_grad()(node.code.forward))

    def _output(self, node: Output) -> StepCall:
        if self.rehearsal is not None:
            return self._rehearsing(node)
        guards = self._guards(node)

        return self._call(node, partial(_guarded, guards) if guards else same)

    def _rehearsing(self, node: Output) -> StepCall:
        """Returned costs, whose reverse pass is rehearsed."""
        count, guards = len(node.inputs), self._guards(node)
        costs = [i for i, aside in enumerate(node.guarded) if not aside]

        def call(*given: Tensor) -> Sequence[Tensor]:
            assert self.rehearsal is not None
            returned, leaves = _guarded(guards, *given[:count]), given[count:]
            for i, cost in zip(costs, rehearsed(self.rehearsal, leaves, [returned[i] for i in costs])):
                returned[i] = cost
            return returned

        return self._call(node, call, *self.places.inputs, *self.places.held)

    def _guards(self, node: Output) -> dict[int, tuple[str, str, str]]:
        """For each returned value that is no cost what to say when a gradient arrives there."""
        asides = (i for i, aside in enumerate(node.guarded) if aside)
        return {i: words for i in asides if (words := self._guard_words(node, i)) is not None}

    def _guard_words(self, node: Output, index: int) -> tuple[str, str, str] | None:
        """What to say when a gradient arrives at a returned value that is no cost."""
        scored = [
            s
            for s in self.graph.influence.upstream(node.inputs[index])
            if isinstance(rule := self.graph[s].propagator, SitePropagator) and rule.inlets
        ]
        if not scored:
            return None
        return node.paths[index], ", ".join(map(repr, scored)), str(node.where)

    # -- sites ------------------------------------------------------------------------------

    def _context(self, site: Site) -> SiteContext:
        assert site.rule is not None
        memory = site.rule.state(site.spec)
        state = None if memory is None else self.state.part(site.copy_of or site.name, lambda: memory)
        known = site.name, site.spec, site.shape, site.where, self.graph.batch
        context = SiteContext(*known, site.spec.builder(), state)
        lead = len(self.graph.lead(site)) if site.dims else 1
        context = replace(context, view=lambda: self.memory.view(site), lead=lead)
        return self.placings[site.name].context(context) if site.name in self.placings else context

    def _site(self, node: Site) -> StepCall:
        rule, mode, count, out = node.rule, self.mode, len(node.inputs), self.places.first(node)
        assert rule is not None
        later = self.bounds.get(node.name, ())
        if node.name in self.placings:
            return self._placed(node, later)
        tangents = {i: self.places.slots[ref] for i, ref in enumerate(node.tangents) if ref is not None}
        none, positions = (None,) * count, range(len(node.tangents))
        context, draw_by = self._find(node.name), rule.draw

        def call(*given: Tensor) -> tuple[Tensor, ...]:
            phi = given[:count]
            if mode.validate and (later or not mode.checked):
                checks.site_check(node, phi, later if mode.checked else node.spec.checks)
            known = dict(zip(tangents, given[count:])) if tangents else None
            draw = draw_by(context(), phi, none if known is None else [known.get(i) for i in positions])
            return (draw.value, *draw.tokens)

        return StepCall(call, (*self.places.reads(node), *tangents.values()), range(out, out + 1 + rule.inlets))

    def _placed(self, node: Site, later: checks.Bounds) -> StepCall:
        """A site in plates."""
        rule, mode, placing, out = node.rule, self.mode, self.placings[node.name], self.places.first(node)
        assert rule is not None
        none, find, draw_by = (None,) * len(node.inputs), self._find(node.name), rule.draw

        def draw(context: SiteContext, phi: Sequence[Tensor]) -> Draw:
            drawn: Draw = draw_by(context, phi, none)
            return drawn

        place = draw if placing.plain else partial(placing.draw, draw)

        def call(*phi: Tensor) -> tuple[Tensor, ...]:
            if mode.validate and (later or not mode.checked):
                checks.site_check(node, phi, later if mode.checked else node.spec.checks)
            drawn = place(find(), phi)
            if not mode.checked:
                placing.check(drawn.value)
            beside = (drawn.weights, drawn.alternatives)
            return (drawn.value, *(values for values in beside if values is not None), *drawn.tokens)

        return StepCall(call, self.places.reads(node), range(out, out + len(node.outputs) + rule.inlets))

    def _find(self, name: str) -> Callable[[], SiteContext]:
        """Looks up the context of a site in the present call."""
        find = partial(self.contexts.__getitem__, name)
        return partial(once, find, draws=False) if self.shares_weights else find

    # -- what sends messages ----------------------------------------------------------------

    def _sender(self, node: Cost | Reduce) -> Sender | None:
        """What makes a cost send its messages; None if it has none to send."""
        routes = self.routes.get(node.name)
        return sender(self.graph, node, routes, self.state, self.inlets) if routes else None

    def _cost(self, node: Cost) -> StepCall:
        sender = self._sender(node)
        if sender is None:
            return self._call(node, same)
        send = sender.send
        return self._call(node, lambda cost, *tokens: (send(cost, tokens),), *sender.reads)

    def _reduce(self, node: Reduce) -> StepCall:
        mean, count = reduced(self.graph, node), len(node.inputs)
        sender = self._sender(node)
        if sender is None:
            return self._call(node, lambda *given: (mean(*given),))
        send = sender.send

        def call(*given: Tensor) -> tuple[Tensor]:
            return (send(mean(*given[:count]), given[count:], given[:count]),)

        return self._call(node, call, *sender.reads)

    def _compare(self, node: CompareAlternatives) -> StepCall:
        ((token,),) = (route.targets for route in self.routes[node.name])
        site, mode = self.graph[token.site], self.mode
        assert isinstance(site, Site)
        have, want = self.graph.plates_of(node.inputs[1]), (node.over, *node.plates)
        inlet = self.inlets.single(token, node.plates, node, (), node.over)
        on_cpu = node.outputs[0].device.type == "cpu"

        def call(cost: Tensor, others: Tensor, sent: Tensor) -> tuple[Tensor]:
            alternatives = aligned(others, have, want)
            if mode.validate and (on_cpu or not mode.checked):
                checks.finite_alternatives(node, site, alternatives)
            return (compared(cost, alternatives, inlet.fit(sent), site),)

        return self._call(node, call, inlet.read)

    def _resample(self, node: Resample) -> StepCall:
        inlets = [self.inlets.joined(route.through, node.plates, node, ()) for route in self.routes.get(node.name, ())]
        count, on_cpu, mode = len(node.inputs), node.outputs[0].device.type == "cpu", self.mode

        def call(*given: Tensor) -> Sequence[Tensor]:
            check = mode.validate and (on_cpu or not mode.checked)
            tokens = [inlet.fit(token) for inlet, token in zip(inlets, given[count:])]
            return refit(node, given[:count], tokens, check)

        return self._call(node, call, *(inlet.read for inlet in inlets))

    # -- scans ------------------------------------------------------------------------------

    def _scan(self, node: Scan) -> StepCall:
        """What a scan carries, as it is before its first step."""
        inlets = [self.inlets.joined((c.first,), c.plates, self.graph[c.reader], c.along) for c in node.tokens]
        reads = (*self.places.reads(node), *(inlet.read for inlet in inlets))
        first = self.places.first(node) if node.outputs else self.places.slots.get(Token(node.name), 0)
        self._begins[node.name] = begin = StepCall(fitted_last(inlets), reads, range(first, first + len(reads)))
        return begin

    def _close(self, node: Scan) -> None:
        """Plan the end of a scan's step: the tokens that it carries on, and a call that reads all that it does."""
        again = [*map(self.places.slots.__getitem__, node.again)]
        for carried in node.tokens:
            inlet = self.inlets.joined((carried.again,), carried.plates, self.graph[carried.reader], carried.along)
            again.append(inlet.read)
            if inlet.fitting is not None:
                again[-1] = self.places.add(Token(node.name, len(self.places)))
                self.plan.append((node, StepCall(fitted_last([inlet]), (inlet.read,), again[-1:])))
        begin, end = self._begins[node.name], StepCall(nothing, tuple(again), ())
        self.plan.append((node, end))
        self.loops.append(Loop(node, end, tuple(begin.writes)))


def _guarded(guards: Mapping[int, tuple[str, str, str]], *given: Tensor) -> list[Tensor]:
    """Returned values, some of which take no gradient."""
    returned = list(given)
    for i, words in guards.items():
        value = returned[i]
        if value.is_floating_point():
            returned[i] = guard(value if value.requires_grad else value.detach().requires_grad_(), *words)
    return returned


def _through(rule: NodeRule, memory: NodeMemory, node: Named, value: Tensor) -> tuple[Tensor]:
    """A value on which a propagator acts."""
    return (through(rule, memory.view(node), value),)


_STEPS: dict[type[Node], Callable[[Any, Any], StepCall]] = {
    Segment: Planner._segment,
    Site: Planner._site,
    Resample: Planner._resample,
    Cost: Planner._cost,
    Reduce: Planner._reduce,
    CompareAlternatives: Planner._compare,
    Scan: Planner._scan,
    Named: Planner._named,
    Opaque: Planner._opaque,
    Expand: Planner._expand,
    Output: Planner._output,
}
