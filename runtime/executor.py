"""Running a scheduled graph: a list of small steps over a table of values.

The forward pass is a loop over steps. The reverse pass has no code here: sites and costs
are connected by autograd functions (`propc.runtime.gates`), so the user's `backward()`
runs it, in one call of the engine.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from propc.baselines import Custom
from propc.graph import PropagationGraph
from propc.ir import (
    BATCH,
    DATA,
    LOG_MEAN_EXP,
    Compare,
    Cost,
    Expand,
    Input,
    Named,
    Node,
    Opaque,
    Output,
    Parameter,
    Reduce,
    Ref,
    Resample,
    Route,
    Scan,
    Segment,
    Site,
    Token,
)
from propc.propagators import Baseline, Draw, SiteContext, SitePropagator
from propc.propagators.base import Propagator
from propc.propagators.gated import through
from propc.runtime import checks
from propc.runtime.aligning import Names, aligned, fitted
from propc.runtime.backends.base import Backend, Report, Violated
from propc.runtime.blocks import last_reads
from propc.runtime.boxes import Box
from propc.runtime.comparing import compared
from propc.runtime.copies import Copies
from propc.runtime.gates import attach, guard
from propc.runtime.independence import check_independence
from propc.runtime.inlets import Inlet, Joined
from propc.runtime.kept import Memory
from propc.runtime.lifting import Lifting, chunked
from propc.runtime.lines import Line, with_blocks
from propc.runtime.once import Recording, once
from propc.runtime.placing import Placing
from propc.runtime.probe import Probe
from propc.runtime.reducing import bounding, centering, reduced
from propc.runtime.rows import ByRows
from propc.runtime.scanning import Loop, fitted_last, nothing, rolled
from propc.runtime.shaping import refit
from propc.runtime.shortage import checking
from propc.runtime.state import EstimatorState
from propc.runtime.straight import Call, Values, same
from propc.tracing.guards import same_random


class Executable:
    """A graph ready to run.

    Args:
        graph: after all passes.
        state: what estimators keep from call to call.
        validate: check parameters and costs.
        probe: hears what sites send to their φ.
        backend: runs the plan from the second call on; None runs it as it is.

    Attributes:
        report: what the backend has made of the plan; None before the first call.
    """

    def __init__(
        self,
        graph: PropagationGraph,
        state: EstimatorState,
        validate: bool = True,
        probe: Probe | None = None,
        backend: Backend | None = None,
    ) -> None:
        validate = validate and not any(kind.device.type == "meta" for node in graph for kind in node.outputs)
        self.graph, self.state, self.validate = graph, state, validate
        self.backend = backend if probe is None else None
        self.report: Report | None = None
        if self.backend is not None:
            self.backend.require(list(dict.fromkeys(kind.device for node in graph for kind in node.outputs)))
        self.memory = Memory(graph, state)
        self.slots: dict[Ref | Token, int] = {}
        for node in graph:
            self._allocate(node)
        self.returned = [self.slots[Ref("output", i)] for i in range(len(graph.output.inputs))]
        self.inputs = tuple(self.slots[Ref(n.name)] for n in graph.of(Input))
        self.held = tuple(self.slots[Ref(n.name)] for n in graph.of(Parameter))
        self.routes: dict[str, list[Route]] = {}
        for route in graph.routes:
            self.routes.setdefault(route.source, []).append(route)
        self.joins = {j.name: j for j in graph.joins}
        self.placings = {s.name: Placing(graph, s) for s in graph.sites if s.plates or s.alternatives}
        self.copies = Copies(graph)
        self.lift = Lifting(graph)
        self.boxes = {box.name: Box(graph, box) for box in graph.of(Opaque)}
        self.fresh = any(getattr(s.rule, "donor", None) is not None for s in graph.sites)
        self.contexts: dict[str, SiteContext] = {s.name: self._context(s) for s in graph.sites}
        on_cpu = (s for s in graph.sites if s.outputs[0].device.type == "cpu")  # elsewhere a check would wait for it
        self.bounds = {s.name: found for s in on_cpu if (found := checks.bounds(s, graph))} if validate else {}
        self.plan: list[tuple[Node, Call]] = []
        self.loops: list[Loop] = []
        self.begins: dict[str, Call] = {}
        self.ends = {scan.body[-1]: scan for scan in graph.of(Scan)}
        for name in graph.schedule.forward:
            self._plan(graph[name])
        if probe is not None:
            self.plan = [(node, probe.around(node, call)) for node, call in self.plan]
        whole = rolled(graph, self.plan, self.loops, self.returned, keep=True)
        self.keeping = Line(graph, whole, [()] * len(whole))
        self._use(self.plan)
        self.checked = False

    def run(self, inputs: Sequence[Tensor], held: Sequence[Tensor]) -> list[Tensor]:
        """One forward pass; the returned tensors in flattened order."""
        self.begin()
        seed = torch.default_generator.get_state() if self.validate else None
        first = not self.checked and (seed is not None or self.backend is not None)
        values, every = self._first(inputs, held) if first else (self._straight(inputs, held, seed), None)
        if seed is not None:
            self.check_costs(values if every is None or self.loops else every, inputs, held, seed)
            if every is not None:
                with checking(self.graph):
                    self.check_independence(every)
        self.checked = True
        if every is not None and self.backend is not None:
            plan, self.report = self.backend.plan(self, every)
            self._use(plan)
        return [values[slot] for slot in self.returned]

    def _use(self, plan: Sequence[tuple[Node, Call]]) -> None:
        """Run this plan from now on."""
        self.straight = self.line(plan)

    def line(self, plan: Sequence[tuple[Node, Call]]) -> Line:
        """A plan as it is run: scans as loops, block by block where the schedule has blocks."""
        plan = rolled(self.graph, plan, self.loops, self.returned, keep=False)
        blocks = with_blocks(self.graph, plan, self.returned)
        return Line(self.graph, blocks, last_reads([call for _, call in blocks], self.returned))

    @property
    def labelled(self) -> dict[str, tuple[Node, ...]]:
        """The nodes of each name that a watcher hears."""
        return self.straight.nodes

    @contextmanager
    def unchecked(self) -> Iterator[None]:
        """Let steps look at no values, as behind the first call without `validate`."""
        before = self.validate, self.checked
        self.validate, self.checked = False, True
        try:
            yield
        finally:
            self.validate, self.checked = before

    def _straight(self, inputs: Sequence[Tensor], held: Sequence[Tensor], seed: Tensor | None) -> Values:
        """The values of a later call; each is let go after its last reader."""
        try:
            return self._forward(inputs, held, self.straight)
        except Violated:
            assert seed is not None
            self._again(inputs, held, seed)  # says which parameter it is
            raise

    def _first(self, inputs: Sequence[Tensor], held: Sequence[Tensor]) -> tuple[Values, Values]:
        """The values of a first call, and all values for its checks; there each scan has one step."""
        if self.loops:
            values = self._forward(inputs, held, self.straight)
            with checking(self.graph), same_random():
                return values, self._forward(inputs, held, Line(self.graph, self.plan, [()] * len(self.plan)))
        if not self.graph.schedule.blocks:
            values = self._forward(inputs, held, self.keeping)
            return values, values
        recording = Recording(list({kind.device for node in self.graph for kind in node.outputs}))
        with recording.running():
            values = self._forward(inputs, held, self.straight)
        with checking(self.graph), recording.repeating(recording.tensors):
            apart = Line(self.graph, [(node, _forgetting(call)) for node, call in self.plan], [()] * len(self.plan))
            every = self._forward([_apart(value) for value in inputs], [_apart(value) for value in held], apart)
        return values, every

    def begin(self) -> None:
        """Forget the mixing weights of the last call."""
        if self.fresh:
            shared: dict[str, list[Tensor]] = {}
            self.contexts.update({k: replace(c, weights=shared) for k, c in self.contexts.items()})

    def _forward(self, inputs: Sequence[Tensor], held: Sequence[Tensor], line: Line) -> Values:
        """Run all steps of a line."""
        values: Values = [None] * len(self.slots)
        for slot, tensor in zip(self.inputs, inputs):
            values[slot] = tensor
        for slot, tensor in zip(self.held, held):
            values[slot] = tensor
        line.run(values)
        return values

    # -- building -----------------------------------------------------------------------

    def _allocate(self, node: Node) -> None:
        for port in range(len(node.outputs)):
            self.slots[Ref(node.name, port)] = len(self.slots)
        if isinstance(node, Site) and node.rule is not None:
            for index in range(node.rule.inlets):
                self.slots[Token(node.name, index)] = len(self.slots)
        if isinstance(node, Scan):
            for index in range(len(node.tokens)):
                self.slots[Token(node.name, index)] = len(self.slots)

    def _context(self, site: Site) -> SiteContext:
        assert site.rule is not None
        memory = site.rule.state(site.spec)
        state = None if memory is None else self.state.part(site.copy_of or site.name, lambda: memory)
        context = SiteContext(site.name, site.spec, site.spec.builder(), self.graph.batch, state)
        lead = len(self.graph.lead(site)) if site.dims else 1
        context = replace(context, view=lambda: self.memory.view(site), lead=lead)
        return self.placings[site.name].context(context) if site.name in self.placings else context

    def _plan(self, node: Node) -> None:
        """Append a node's step to the plan, after those of the joins that it is the first to read."""
        call = self._step(node)
        if call is not None:
            self.plan.append((node, self.copies.around(node, call)))
        scan = self.ends.get(node.name)
        if scan is not None:
            self._close(scan)

    def _step(self, node: Node) -> Call | None:
        if isinstance(node, Segment):
            return self._segment(node)
        if isinstance(node, Site):
            return self._site(node)
        if isinstance(node, Resample):
            return self._resample(node)
        if isinstance(node, Cost):
            return self._cost(node)
        if isinstance(node, Reduce):
            return self._reduce(node)
        if isinstance(node, Compare):
            return self._compare(node)
        if isinstance(node, Scan):
            return self._scan(node)
        if isinstance(node, Named):
            return self._copy(node) if node.rule is None or node.rule.idle else self._gate(node, node.rule)
        if isinstance(node, Opaque):
            return self._opaque(node)
        if isinstance(node, Expand):
            return self._expand(node)
        if isinstance(node, Output):
            return self._output(node)
        return None

    def _reads(self, node: Node) -> tuple[int, ...]:
        return tuple(self.slots[ref] for ref in node.inputs)

    def _writes(self, node: Node) -> range:
        first = self.slots[Ref(node.name)] if node.outputs else 0
        return range(first, first + len(node.outputs))

    def _segment(self, node: Segment) -> Call:
        assert node.stage is not None
        run: Callable[..., Sequence[Any]] = self.lift(node) if node.plates else node.stage.module.forward
        if node.rows:
            run = ByRows(self.graph, node, lambda: self.validate and not self.checked)
        return Call(run, self._reads(node), self._writes(node))

    def _site(self, node: Site) -> Call:
        rule, name, count, out = node.rule, node.name, len(node.inputs), self.slots[Ref(node.name)]
        assert rule is not None
        tangents = {i: self.slots[ref] for i, ref in enumerate(node.tangents) if ref is not None}
        none, places = (None,) * count, range(len(node.tangents))
        later = self.bounds.get(name, ())
        context, draw_by = self._find(name), rule.draw
        if node.name in self.placings:
            return self._placed(node, later)

        def call(*given: Tensor) -> tuple[Tensor, ...]:
            phi = given[:count]
            if self.validate and (later or not self.checked):
                checks.site_check(node, phi, later if self.checked else node.spec.checks)
            known = dict(zip(tangents, given[count:])) if tangents else None
            draw = draw_by(context(), phi, none if known is None else [known.get(i) for i in places])
            return (draw.value, *draw.tokens)

        writes = range(out, out + 1 + rule.inlets)
        return Call(call, (*self._reads(node), *tangents.values()), writes)

    def _placed(self, node: Site, later: checks.Bounds) -> Call:
        """A site in plates."""
        rule, placing, out = node.rule, self.placings[node.name], self.slots[Ref(node.name)]
        assert rule is not None
        none, find, draw_by = (None,) * len(node.inputs), self._find(node.name), rule.draw

        def draw(context: SiteContext, phi: Sequence[Tensor]) -> Draw:
            return draw_by(context, phi, none)

        place = draw if placing.plain else partial(placing.draw, draw)

        def call(*phi: Tensor) -> tuple[Tensor, ...]:
            if self.validate and (later or not self.checked):
                checks.site_check(node, phi, later if self.checked else node.spec.checks)
            drawn = place(find(), phi)
            if not self.checked:
                placing.check(drawn.value)
            beside = (drawn.weights, drawn.alternatives)
            return (drawn.value, *(values for values in beside if values is not None), *drawn.tokens)

        return Call(call, self._reads(node), range(out, out + len(node.outputs) + rule.inlets))

    def _find(self, name: str) -> Callable[[], SiteContext]:
        """Looks up the context of a site in the present call."""
        find = partial(self.contexts.__getitem__, name)
        return partial(once, find, draws=False) if self.fresh else find

    def _reduce(self, node: Reduce) -> Call:
        mean, reads, writes, count = reduced(self.graph, node), self._reads(node), self._writes(node), len(node.inputs)
        sender = self._sender(node)
        if sender is None:
            return Call(lambda *given: (mean(*given),), reads, writes)
        send = sender.send

        def call(*given: Tensor) -> tuple[Tensor]:
            return (send(mean(*given[:count]), given[count:], given[:count]),)

        return Call(call, (*reads, *sender.reads), writes)

    def _cost(self, node: Cost) -> Call:
        sender = self._sender(node)
        if sender is None:
            return self._copy(node)
        send = sender.send
        return Call(
            lambda cost, *tokens: (send(cost, tokens),), (*self._reads(node), *sender.reads), self._writes(node)
        )

    def _compare(self, node: Compare) -> Call:
        ((token,),) = (route.targets for route in self.routes[node.name])
        site = self.graph[token.site]
        assert isinstance(site, Site)
        have, want = self.graph.plates_of(node.inputs[1]), (node.over, *node.plates)
        inlet = self._token(token, node.plates, node, (), node.over)
        on_cpu = node.outputs[0].device.type == "cpu"

        def call(cost: Tensor, others: Tensor, sent: Tensor) -> tuple[Tensor]:
            alternatives = aligned(others, have, want)
            if self.validate and (on_cpu or not self.checked):
                checks.finite_alternatives(node, site, alternatives)
            return (compared(cost, alternatives, inlet.fit(sent), site),)

        return Call(call, (*self._reads(node), inlet.read), self._writes(node))

    def _scan(self, node: Scan) -> Call:
        """What a scan carries, as it is before its first step."""
        inlets = [self._join((c.first,), c.plates, self.graph[c.reader], c.along) for c in node.tokens]
        reads = (*self._reads(node), *(inlet.read for inlet in inlets))
        first = self.slots[Ref(node.name)] if node.outputs else self.slots.get(Token(node.name), 0)
        self.begins[node.name] = begin = Call(fitted_last(inlets), reads, range(first, first + len(reads)))
        return begin

    def _close(self, node: Scan) -> None:
        """Plan the end of a scan's step: the tokens that it carries on, and a call that reads all that it does."""
        again = [*map(self.slots.__getitem__, node.again)]
        for carried in node.tokens:
            inlet = self._join((carried.again,), carried.plates, self.graph[carried.reader], carried.along)
            again.append(inlet.read)
            if inlet.fitting is not None:
                again[-1] = self.slots[Token(node.name, len(self.slots))] = len(self.slots)
                self.plan.append((node, Call(fitted_last([inlet]), (inlet.read,), again[-1:])))
        begin, end = self.begins[node.name], Call(nothing, tuple(again), ())
        self.plan.append((node, end))
        self.loops.append(Loop(node, begin, end, tuple(begin.writes)))

    def _sender(self, node: Cost | Reduce) -> _Sender | None:
        """What makes a cost send its messages, in the plates where it stands; None if it has none to send."""
        routes = self.routes.get(node.name, [])
        if not routes:
            return None
        center = bounding if isinstance(node, Reduce) and node.how == LOG_MEAN_EXP else centering
        centers = []
        for (baseline, state), route in zip(self.baselines(node, routes), routes):
            each = center(self.graph, route, baseline, state)
            centers.append(_once(each) if baseline.stateful or isinstance(baseline, Custom) else each)
        inlets = [self._join(route.through, self.graph.meeting(route), node, route.along) for route in routes]

        def send(cost: Tensor, tokens: Sequence[Tensor], given: Sequence[Tensor] = ()) -> Tensor:
            fixed = cost.detach()
            with torch.no_grad():
                centered = tuple(center(fixed, *given) for center in centers)
            return attach(cost, centered, tuple(inlet.fit(token) for inlet, token in zip(inlets, tokens)))

        return _Sender(tuple(inlet.read for inlet in inlets), send)

    def baselines(self, node: Cost | Reduce, routes: Sequence[Route]) -> list[tuple[Baseline, nn.Module | None]]:
        """The baseline of each of a cost's routes, with what it keeps."""
        found: list[tuple[Baseline, nn.Module | None]] = []
        for key, route in zip(_state_keys(node, routes), routes):
            assert route.baseline is not None
            stateful = route.baseline.stateful
            found.append((route.baseline, self.state.part(key, route.baseline.state) if stateful else None))
        return found

    def _resample(self, node: Resample) -> Call:
        inlets = [self._join(route.through, node.plates, node, ()) for route in self.routes.get(node.name, ())]
        count, on_cpu = len(node.inputs), node.outputs[0].device.type == "cpu"

        def call(*given: Tensor) -> Sequence[Tensor]:
            check = self.validate and (on_cpu or not self.checked)
            tokens = [inlet.fit(token) for inlet, token in zip(inlets, given[count:])]
            return refit(node, given[:count], tokens, check)

        return Call(call, (*self._reads(node), *(inlet.read for inlet in inlets)), self._writes(node))

    def _join(self, tokens: tuple[Token, ...], plates: Names, node: Node, along: Names) -> Inlet:
        """How a node reads the token that stands for `tokens`, in plates; the first reader of a join plans it.

        Args:
            along: plates of the data along which elements stay apart.
        """
        (token,) = tokens
        if token not in self.slots:
            members = self.joins[token.site].members
            inlets = tuple(self._join((member,), plates, node, along) for member in members)
            made = self.slots[token] = len(self.slots)
            self.plan.append((node, Call(Joined(inlets), tuple(inlet.read for inlet in inlets), range(made, made + 1))))
        return self._token(token, plates, node, along)

    def _token(self, token: Token, plates: Names, node: Node, along: Names, *over: str) -> Inlet:
        """How a node reads a token, in plates and the dimensions of the node that sends to it.

        Args:
            along: plates of the data along which elements stay apart.
            over: a plate in front of those of both.
        """
        slot, site = self.slots[token], self.graph.nodes.get(token.site)
        have = (*over, *self.graph.lead(site)) if isinstance(site, Site) else ()
        want = (*over, *plates, *self.graph.own(node))
        apart = tuple(n for n in have if n in want and (n in along or self._is_leading(n)))
        if not isinstance(site, Site) or have == want == apart:
            return Inlet(slot)
        sizes = self.graph.sizes(want)
        return Inlet(slot, lambda token: fitted(token, have, want, apart, sizes))

    def _is_leading(self, name: str) -> bool:
        """Whether a dimension is the batch or stands in front of it."""
        return name == BATCH or self.graph.plate(name).kind != DATA

    def _gate(self, node: Named, rule: Propagator) -> Call:
        view = self.memory.view
        return Call(lambda value: (through(rule, view(node), value),), self._reads(node), self._writes(node))

    def _copy(self, node: Node) -> Call:
        return Call(same, self._reads(node), self._writes(node))

    def _opaque(self, node: Opaque) -> Call:
        box = self.boxes[node.name]
        spread = (node.plates,) * len(node.outputs)
        run = chunked(self.graph, box.call, box.reads, spread) if box.folds else box.call
        return Call(_once(run), self._reads(node), self._writes(node))

    def _expand(self, node: Expand) -> Call:
        return Call(torch.no_grad()(node.code.forward), self._reads(node), self._writes(node))

    def _output(self, node: Output) -> Call:
        asides = (i for i, aside in enumerate(node.guarded) if aside)
        guards = {i: words for i in asides if (words := self._guard_words(node, i)) is not None}

        def call(*given: Tensor) -> Sequence[Tensor]:
            returned = list(given)
            for i, words in guards.items():
                value = returned[i]
                if value.is_floating_point():
                    returned[i] = guard(value if value.requires_grad else value.detach().requires_grad_(), *words)
            return returned

        return Call(call if guards else same, self._reads(node), self._writes(node))

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

    # -- checking -----------------------------------------------------------------------

    def check_costs(self, values: Values, inputs: Sequence[Tensor], held: Sequence[Tensor], seed: Tensor) -> None:
        """Look for NaN and infinity among the returned costs; if there are, run again to find their source."""
        for slot in self.returned:
            value = values[slot]
            here = value.device.type == "cpu" or not self.checked  # elsewhere a check would wait for the device
            if not here or not value.dtype.is_floating_point or value.dim() > 1:
                continue
            if not math.isfinite(value.detach().sum().item()):  # if only the sum overflows, nothing is found
                found = self._again(inputs, held, seed) if self.checked or self.loops else values
                error = checks.explain_failure(self.graph, self._named(found))
                if error is not None:
                    raise error

    def _again(self, inputs: Sequence[Tensor], held: Sequence[Tensor], seed: Tensor) -> Values:
        """All values of a call, with the random numbers that it drew."""
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.default_generator.set_state(seed)
            return self._forward(inputs, held, self.keeping)

    def _named(self, values: Values) -> dict[Ref, Any]:
        return {ref: values[i] for ref, i in self.slots.items() if isinstance(ref, Ref)}

    def check_independence(self, values: Values) -> None:
        """Check at the first call that rows, and elements of plates, do not mix."""
        if self.checked:
            return
        for box in self.boxes.values():
            box.check(*self._ends(values, box.node))
        if any(s.rule is not None and s.rule.per_sample for s in self.graph.sites):
            self.check_rows(values)

    def _ends(self, values: Values, node: Node) -> tuple[list[Tensor], list[Tensor]]:
        """What a node has read and made."""
        return [values[i] for i in self._reads(node)], [values[self.slots[ref]] for ref in node.made]

    def check_rows(self, values: Values) -> None:
        drawn = [node for node in self.graph if isinstance(node, (Site, Resample)) and not node.copy_of]
        draws = {ref: values[self.slots[ref]] for node in drawn for ref in node.made}
        check_independence(self.graph, lambda changed: self._replay(values, changed), draws)

    def _replay(self, first: Values, draws: Mapping[Ref, Tensor]) -> dict[Ref, Any]:
        """All values for given draws, from the leaves of a first run.

        What black boxes do not repeat stays as it was.

        Gradients are on, for programs with hooks or `torch.autograd.grad` inside.
        """
        values: Values = [None] * len(self.slots)
        for slot in (*self.inputs, *self.held):
            values[slot] = _apart(first[slot])
        with same_random():
            torch.manual_seed(0)
            for node, call in self.plan:
                if node.copy_of:
                    continue
                if isinstance(node, (Site, Resample)):
                    for ref in node.made:
                        slot = self.slots[ref]
                        values[slot] = _apart(draws[ref], first[slot].requires_grad)
                elif isinstance(node, Opaque):
                    start = self.slots[Ref(node.name)]
                    again = self.boxes[node.name].again(self._ends(values, node)[0], self._ends(first, node)[1])
                    values[start : start + len(node.outputs)] = again
                elif isinstance(node, (Cost, Compare, Named)):
                    values[self.slots[Ref(node.name)]] = values[self.slots[node.inputs[0]]]
                elif isinstance(node, Reduce):
                    mean = reduced(self.graph, node)
                    values[self.slots[Ref(node.name)]] = mean(*[values[i] for i in self._reads(node)])
                elif isinstance(node, Scan):
                    for made, ref in zip(node.made, node.inputs):
                        values[self.slots[made]] = values[self.slots[ref]]
                elif isinstance(node, Segment):
                    call(values)
        return self._named(values)


@dataclass(frozen=True, slots=True)
class _Sender:
    """What makes a cost send its messages.

    Attributes:
        reads: the places of its tokens.
        send: takes the cost, the tokens, and what the cost was reduced from.
    """

    reads: tuple[int, ...]
    send: Callable[..., Tensor]


def _once(run: Callable[..., Any]) -> Callable[..., Any]:
    """The same, called once where the program runs again in the reverse pass."""
    return lambda *values: once(partial(run, *values))


def _forgetting(call: Call) -> Call:
    """The same without the history of what it gives."""

    def function(*values: Any) -> list[Any]:
        return [
            value.detach().requires_grad_(value.requires_grad) if isinstance(value, Tensor) else value
            for value in call.function(*values)
        ]

    return replace(call, function=function)


def _state_keys(cost: Cost | Reduce, routes: Sequence[Route]) -> list[str]:
    """Names for what the baselines of a cost's routes keep; numbered where several are of one kind."""
    kinds = [type(route.baseline).__name__ for route in routes]
    return [f"{cost.name}:{kind}{kinds[:i].count(kind) or ''}" for i, kind in enumerate(kinds)]


def _apart(tensor: Tensor, wants: bool | None = None) -> Tensor:
    """A copy with a history of its own, that can be written into."""
    wants = tensor.requires_grad if wants is None else wants
    return tensor.detach().requires_grad_(wants).clone()
