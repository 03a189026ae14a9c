"""Running a graph by messages: every node apart, the ways between them in the open.

Where all messages are cotangents, autograd carries them in one call (`propc.runtime.executable`). Here the
same steps run one by one, each on leaves of its own; the reverse pass visits the nodes in the opposite
order, takes each step's vector-Jacobian product, and calls the propagators of those that have one.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from propc.errors import EstimatorError, GraphError, MessageError, PropcValueError, message, nearest
from propc.ir.adjacency import BACKWARD, FORWARD
from propc.ir.graph import PropagationGraph
from propc.ir.messages import EMPTY, Message, copied
from propc.ir.nodes.cost import Cost
from propc.ir.nodes.leaves import Input, Parameter
from propc.ir.nodes.named import Named
from propc.ir.nodes.node import Node
from propc.ir.nodes.scan import Scan
from propc.ir.nodes.site import Site
from propc.ir.records import Join, Ref, Token
from propc.propagators.baselines import WEIGHT
from propc.propagators.gated import no_cotangent, value_of
from propc.propagators.propagator import NodeView, note
from propc.runtime.backend import Backend, Report
from propc.runtime.checks import values
from propc.runtime.checks.out_of_memory import explaining
from propc.runtime.executable import Executable
from propc.runtime.lowering.cost_lowering import baselines
from propc.runtime.messaging.mailbox import Directory, Post, several
from propc.runtime.messaging.node_memory import NodeMemory
from propc.runtime.messaging.propagation import Propagation
from propc.runtime.messaging.step_tape import Cotangents, Tape
from propc.runtime.observe.cotangent_probe import Probe
from propc.runtime.observe.watched_plan import heard
from propc.runtime.observe.watcher import label, span, watching
from propc.runtime.plan.step import Step
from propc.types import TensorType
from propc.util.estimator_state import EstimatorState

_ONE_BY_ONE = "the whole graph", "nodes are visited one by one"
Start = dict[int, Tensor]
Initial = dict[str, Message]


@dataclass
class Session:
    """One call: its values, the messages of its forward pass, and its nodes with propagators."""

    tape: Tape
    forward: Post
    views: dict[str, NodeView] = field(default_factory=dict)


class Messenger:
    """A graph ready to run by messages.

    Args:
        graph: after all passes.
        state: what estimators and nodes keep from call to call.
        validate: check parameters and costs.
        probe: hears what sites send to their φ.
        backend: which compiles none of it.

    Attributes:
        report: says so.
    """

    def __init__(
        self,
        graph: PropagationGraph,
        state: EstimatorState,
        validate: bool = True,
        probe: Probe | None = None,
        backend: Backend | None = None,
    ) -> None:
        _refuse_scans(graph)
        _refuse_weights(graph)
        self.graph, self.memory, self.probe = graph, NodeMemory(graph, state), probe
        self.report = None if backend is None else Report(backend.name, apart=(_ONE_BY_ONE,))
        self.executable = Executable(_unfused(graph), state, validate, probe)
        self.slots = self.executable.places.slots
        self.directories = {d: Directory(graph, d) for d in (FORWARD, BACKWARD)}
        self.routes = self.executable.planner.routes
        own = {step.node.name: step for step in self.executable.plan}  # the last of a node: before it stand its joins
        self.steps = [
            step for step in self.executable.plan if step is own[step.node.name] or not step.node.takes_messages
        ]
        self.visited = {step.node.name for step in self.steps if step.node.takes_messages}

    @property
    def labelled(self) -> dict[str, tuple[Node, ...]]:
        """The nodes of each name that a watcher hears."""
        return heard(self.steps)

    def run(self, inputs: Sequence[Tensor], held: Sequence[Tensor]) -> list[Tensor]:
        """One forward pass; the returned tensors, whose gradients come back by messages."""
        leaves = [*inputs, *held]
        found = _Propagated.apply(self, len(inputs), *leaves)
        return list(found)

    def propagation(
        self,
        direction: str,
        sent: Message | Mapping[str, Message] | None,
        inputs: Sequence[Tensor],
        held: Sequence[Tensor],
    ) -> Propagation:
        """Run a call by messages alone; the value is what it returns, flattened.

        Args:
            direction: of the pass that the messages begin.
            sent: what waits at its beginning.

        Raises:
            PropcValueError: a message to a node that takes none.
        """
        cotangents, starts = self.starts(sent, direction)
        session = self.forward(inputs, held, starts if direction == FORWARD else {})
        post = session.forward if direction == FORWARD else self.backward(session, cotangents, starts)
        returned = [session.tape.values[slot] for slot in self.executable.places.returned]
        return Propagation(self.messages(post), session.views, returned)

    def forward(self, inputs: Sequence[Tensor], held: Sequence[Tensor], initial: Mapping[str, Message]) -> Session:
        """Run the program and the forward messages."""
        self.executable.planner.sites.begin()
        session = Session(Tape(len(self.slots)), Post(self.directories[FORWARD]))
        tape, places = session.tape, self.executable.places
        given = (*inputs, *held)
        for slot, tensor in zip(places.given, given):
            tape.values[slot], tape.wants[slot] = tensor.detach(), tensor.requires_grad
        for name, sent in (*self.memory.waiting().items(), *initial.items()):
            session.forward.deliver("the caller", session.forward.directory.checked(name, sent), (name,))
        seed = torch.default_generator.get_state()
        with torch.enable_grad():
            watcher = watching()
            for step in self.steps:
                with span(watcher, label(step.node), FORWARD), explaining(self.graph, (step.node,), backward=False):
                    self._visit_forward(step, session) if step.node.name in self.visited else tape.run(step)
        self._check(session, given, seed)
        self.memory.keep(session.forward.kept)
        return session

    def _check(self, session: Session, given: Sequence[Tensor], seed: Tensor) -> None:
        run, every = self.executable, session.tape.values
        if run.mode.validate:
            returned = [every[slot] for slot in run.places.returned]
            run.check_costs(returned, lambda: run.again(given, seed) if run.mode.checked else every)
            if not run.mode.checked:
                run.replay.check(every)
        run.mode.checked = True

    def backward(self, session: Session, cotangents: Start, initial: Mapping[str, Message]) -> Post:
        """Run the reverse pass.

        Args:
            cotangents: on values, by place.
            initial: messages that wait at nodes from the beginning.

        Returns:
            the messages; what leaves have received remains, under their paths.
        """
        post = Post(self.directories[BACKWARD])
        for name, sent in initial.items():
            post.deliver("the caller", post.directory.checked(name, sent), (name,))
        arrived = Cotangents(cotangents)
        with torch.no_grad():
            watcher = watching()
            for step in reversed(self.steps):
                with span(watcher, label(step.node), BACKWARD), explaining(self.graph, (step.node,), backward=True):
                    self._visit_backward(step, session, arrived, post)
            self._leaves(arrived, post)
        self.memory.keep(session.forward.kept, post.kept)
        return post

    # -- visiting -----------------------------------------------------------------------

    def _visit_forward(self, step: Step, session: Session) -> None:
        node, tape = step.node, session.tape
        rule = node.propagator
        assert rule is not None
        view = session.views[node.name] = self.memory.view(node)
        view.inputs = [tape.leaf(i) for i in self._read(step)]
        if not isinstance(node, Site):
            view.value = tape.values[step.reads[0]]
        elif self.executable.mode.validate and (view.inputs[0].is_cpu or not self.executable.mode.checked):
            values.site_check(node, view.inputs, node.spec.checks)
        with _named(view):
            session.forward.put(node.name, rule.forward(view, session.forward.take(node.name)))
        value = value_of(view)
        inlets = [view.inputs[0].new_zeros(value.shape[:1]) for _ in step.writes[1:]]  # the value may be an integer
        wanted = isinstance(node, Cost) or any(tape.wants[i] for i in self._read(step))
        for slot, made in zip(step.writes, (value, *inlets)):
            tape.values[slot] = made
            tape.wants[slot] = wanted and (made.dtype.is_floating_point or made.dtype.is_complex)

    def _visit_backward(self, step: Step, session: Session, arrived: Cotangents, post: Post) -> None:
        name = step.node.name
        if name not in self.visited:
            _take_in(step, post.take(name), arrived, post)
            session.tape.pull(step, arrived)
            return
        view, rule = session.views[name], step.node.propagator
        assert rule is not None
        own = {
            key: found for key, slot in zip(("grad", "cost"), step.writes) if (found := arrived.pop(slot)) is not None
        }
        if own:
            post.waiting.setdefault(name, []).insert(0, ("its readers", Message(own)))
        with _named(view):
            sent = rule.backward(view, post.take(name))
            for each in several(sent):
                self._send(step, each, arrived, post)

    def _send(self, step: Step, sent: Any, arrived: Cotangents, post: Post) -> None:
        """Cotangents go to what the node reads, a cost's message to its sites, the rest along routes."""
        node = step.node
        if not isinstance(sent, Message) or sent.target is not None:
            post.put(node.name, sent)
            return
        own: tuple[str, ...] = node.spec.fields if isinstance(node, Site) else ("grad",)
        for position, (key, slot) in enumerate(zip(own, self._read(step))):
            if key in sent:
                cotangent = _fitting(sent[key], self._type(node, key), node, key)
                arrived.add(slot, cotangent)
                if self.probe is not None and isinstance(node, Site):
                    self.probe.hear(node.name, position, cotangent)
        if isinstance(node, Cost) and "cost" in sent:
            own = (*own, "cost")
            routes = self.routes.get(node.name, [])
            for route, (baseline, state) in zip(routes, baselines(node, routes, self.memory.state)):
                centered = baseline.centered(sent["cost"], state)
                for token in route.targets:
                    arrived.add(self.slots[token], centered)
        if isinstance(node, Site) and "grad" in sent:
            raise no_cotangent(NodeView(node), "grad")
        rest = sent.without(*own)
        if rest:
            post.put(node.name, rest)

    def _read(self, step: Step) -> tuple[int, ...]:
        """The places of what a node reads, without tokens."""
        return step.reads[: len(step.node.inputs)]

    def _type(self, node: Node, key: str) -> tuple[int, ...]:
        ref = node.inputs[node.spec.fields.index(key) if isinstance(node, Site) else 0]
        return self.graph[ref.node].outputs[ref.port].shape

    def _leaves(self, arrived: Cotangents, post: Post) -> None:
        """What has arrived at inputs and parameters remains there."""
        for node in self.graph:
            if isinstance(node, (Input, Parameter)):
                found = arrived.pop(self.slots[Ref(node.name)])
                sent = post.waiting.pop(node.name, [])
                if found is not None:
                    sent = [("its readers", Message(grad=found)), *sent]
                if sent:
                    post.remaining.setdefault(node.name, []).extend(sent)

    # -- for users ----------------------------------------------------------------------

    def starts(self, sent: Message | Mapping[str, Message] | None, direction: str) -> tuple[Start, Initial]:
        """What waits at the beginning of a pass: cotangents on the returned values, and messages at nodes.

        Raises:
            PropcValueError: an unknown node.
        """
        if sent is None:
            return (self._mean(), {}) if direction == BACKWARD else ({}, {})
        if not isinstance(sent, Message):
            return {}, {name: self._addressed(name, each) for name, each in sent.items()}
        cotangents = {}
        if direction == BACKWARD and "grad" in sent:
            cotangents = {slot: _spread(sent["grad"], *end) for slot, end in self._returned()}
            sent = sent.without("grad")
        near = self.graph.wiring.parents if direction == FORWARD else self.graph.wiring.children
        return cotangents, {name: self._addressed(name, sent) for name in near if not near[name]}

    def _mean(self) -> Start:
        """Those of the mean over the batch of every returned cost."""
        found = {}
        for slot, (node, kind) in self._returned():
            found[slot] = _spread(1.0 / max(1, math.prod(kind.shape)), node, kind)
        return found

    def _returned(self) -> Iterator[tuple[int, tuple[Node, TensorType]]]:
        """The returned costs."""
        output = self.graph.output
        for slot, kind, aside in zip(self.executable.places.returned, output.outputs, output.guarded):
            if kind.dtype.is_floating_point and len(kind.shape) < 2 and not aside:
                yield slot, (output, kind)

    def _addressed(self, name: str, sent: Message) -> Message:
        """A copy of an initial message; a cotangent in it may be a number."""
        node, made = self.graph.nodes.get(name), copied(sent)
        if not isinstance(node, (Named, Cost, Site)):
            known = [n.name for n in self.graph if isinstance(n, (Named, Cost, Site))]
            raise PropcValueError(message(f"no node {name!r} takes messages", nearest(name, known)))
        return made.replace(grad=_spread(made["grad"], node, node.outputs[0])) if "grad" in made else made

    def messages(self, post: Post) -> dict[str, Message]:
        """What remained, by node or by the path of a leaf."""
        paths = {n.name: n.path for n in self.graph if isinstance(n, (Input, Parameter))}
        taken = Counter(paths.values())
        left = post.left()
        return {paths[k] if k in paths and taken[paths[k]] == 1 else k: sent for k, sent in left.items()}


class _Propagated(Function):
    """The returned values of a program; a gradient that arrives at them is carried on by messages."""

    @staticmethod
    def forward(ctx: Any, messenger: Messenger, count: int, *leaves: Tensor) -> tuple[Tensor, ...]:
        session = messenger.forward(leaves[:count], leaves[count:], {})
        ctx.messenger, ctx.session = messenger, session
        ctx.set_materialize_grads(False)
        returned = [session.tape.values[slot] for slot in messenger.executable.places.returned]
        found = tuple(value.view_as(value) for value in returned)
        wanted = [session.tape.wants[slot] for slot in messenger.executable.places.returned]
        ctx.mark_non_differentiable(*(value for value, wants in zip(found, wanted) if not wants))
        return found

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        if torch.is_grad_enabled():
            raise EstimatorError(
                message(
                    f"{ctx.messenger.graph.name!r} has propagators whose messages autograd does not carry; they give "
                    "first derivatives only",
                    "Leave out create_graph=True.",
                )
            )
        messenger: Messenger = ctx.messenger
        returned = messenger.executable.places.returned
        cotangents: Start = {slot: grad for slot, grad in zip(returned, grads) if grad is not None}
        post = messenger.backward(ctx.session, cotangents, {})
        left = post.left()
        leaves = [*messenger.graph.of(Input), *messenger.graph.of(Parameter)]
        return (None, None, *(left.get(leaf.name, EMPTY).get("grad") for leaf in leaves))


@contextmanager
def _named(view: NodeView) -> Iterator[None]:
    """Say at which node a propagator failed."""
    try:
        yield
    except MessageError:
        raise
    except Exception as error:
        note(error, view)
        raise


def _refuse_scans(graph: PropagationGraph) -> None:
    """Refuse a graph in which one node stands for many steps: by messages every node is visited by itself."""
    for scan in graph.of(Scan):
        raise GraphError(
            message(
                f"{scan.length} of its steps are one node, and a pass by messages visits every node by itself",
                "Write a Python loop in place of propc.scan.",
                at=f"scan {scan.name!r}",
                where=scan.where,
            )
        )


def _refuse_weights(graph: PropagationGraph) -> None:
    """Refuse a cost that makes messages of its own where a site wants its weight: what it sends has none."""
    for route in graph.routes:
        source = graph[route.source]
        if route.baseline is WEIGHT and source.takes_messages:
            site = graph[route.targets[0].site]
            raise EstimatorError(
                message(
                    f"its propagator {site.propagator!r} takes the weights of costs, and cost {source.name!r} has a "
                    "propagator, which sends messages in their place",
                    "Use 'lr' here, or leave the cost's propagator out.",
                    at=f"site {site.name!r}",
                    where=site.where,
                )
            )


def _unfused(graph: PropagationGraph) -> PropagationGraph:
    """The graph with a join for each route, since no cost can share one with another here."""
    joins, routes = [], []
    for i, route in enumerate(r for r in graph.routes if r.by_autograd):
        if route.kind == "alternatives":
            routes.append(route)
            continue
        joins.append(Join(f"join{i}", route.targets))
        routes.append(replace(route, through=(Token(f"join{i}"),)))
    return replace(graph, routes=tuple(routes), joins=tuple(joins))


def _take_in(step: Step, waiting: Message, arrived: Cotangents, post: Post) -> None:
    """What has been sent to a node without a propagator of its own: cotangents and costs; the rest remains."""
    taken = dict(zip(("grad", "cost"), step.writes))
    for key, slot in taken.items():
        if key in waiting:
            arrived.add(slot, waiting[key])
    rest = waiting.without(*taken)
    if rest:
        post.remaining.setdefault(step.node.name, []).append(("messages", rest))


def _fitting(cotangent: Any, shape: tuple[int, ...], node: Node, key: str) -> Tensor:
    """A cotangent of the shape of the value that it is on.

    Raises:
        MessageError: it has another.
    """
    if not isinstance(cotangent, Tensor) or tuple(cotangent.shape) != shape:
        got = list(cotangent.shape) if isinstance(cotangent, Tensor) else type(cotangent).__name__
        raise MessageError(
            message(
                f"it sends the cotangent {key!r} as {got}; the value has shape {list(shape)}",
                "A cotangent has the shape of its value.",
                at=f"{node.called} {node.name!r}",
                where=node.where,
            )
        )
    return cotangent


def _spread(cotangent: Any, node: Node, kind: TensorType) -> Tensor:
    """A cotangent of a value's shape, from one or a number."""
    made = torch.as_tensor(cotangent, dtype=kind.dtype, device=kind.device)
    return made.expand(kind.shape) if not made.dim() else _fitting(made, kind.shape, node, "grad")
