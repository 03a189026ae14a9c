"""Networks of propagators built by hand: message passing without a traced program."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import nn

from propc.errors import PropcTypeError, PropcValueError, message, nearest
from propc.frontend.environment.isolation import without_collection
from propc.frontend.user_source import user_source
from propc.ir.adjacency import BACKWARD, FORWARD
from propc.ir.graph import PropagationGraph
from propc.ir.messages import Message, copied
from propc.ir.nodes.named import Named
from propc.ir.nodes.node import Node
from propc.ir.nodes.output import Output
from propc.ir.records import Ref
from propc.passes import DropIdle, Pipeline, RouteMessages, Schedule
from propc.passes.pipeline import make_pass
from propc.propagators.propagator import NodeView, Propagator
from propc.propagators.registry import at_node
from propc.runtime.messaging.mailbox import Directory, Post
from propc.runtime.messaging.network_sweep import Sweep
from propc.runtime.messaging.node_memory import NodeMemory
from propc.runtime.messaging.propagation import Propagation, check_call
from propc.util.estimator_state import EstimatorState


class Network(nn.Module):
    """A DAG of propagators without values, built node by node.

    Nodes are added behind their parents, so that the order of adding is an order of visiting. It compiles
    when first used: routes are planned, and nodes that only hand messages on are left out.

    Args:
        name: printed name.
        passes: further compiler passes, as of `propc.compile`; they run first.
    """

    def __init__(self, name: str = "network", passes: Iterable[Any] = ()) -> None:
        super().__init__()
        self.name, self.passes = name, tuple(map(make_pass, passes))
        self.estimator_state = EstimatorState()
        self._records: dict[str, Node] = {}
        self._ready: _Ready | None = None

    def add(self, name: str, propagator: Propagator | str, parents: Sequence[str] = ()) -> str:
        """Add a node behind its parents; returns its name.

        Raises:
            PropcValueError: the name is taken, or a parent is not there yet.
            PropcTypeError: `propagator` is neither a propagator nor the name of one.
        """
        if name in self._records or name == "output":
            raise PropcValueError(message(f"the name {name!r} is taken", "Choose another.", where=user_source()))
        if isinstance(parents, str):
            raise PropcTypeError(
                message(f"parents= takes a sequence of names; got {parents!r}", f"Write [{parents!r}].")
            )
        for parent in parents:
            if parent not in self._records:
                raise PropcValueError(
                    message(
                        f"its parent {parent!r} is not in the network",
                        f"Add parents before their children. {nearest(parent, self._records)}",
                        at=f"node {name!r}",
                        where=user_source(),
                    )
                )
        where = user_source()
        rule = at_node(propagator, "node", name, where)
        if rule.passes(name):
            raise PropcTypeError(
                message(f"the propagator {rule.name!r} works on a value, which a network's node has not", at=repr(name))
            )
        refs = tuple([Ref(parent) for parent in parents])
        self._records[name] = Named(name=name, outputs=(), inputs=refs, rule=rule, where=where)
        self._ready = None
        return name

    def extra_repr(self) -> str:
        """Its name, and those of its nodes."""
        names = list(self._records)
        shown = names if len(names) < 12 else [*names[:8], "…", *names[-3:]]
        return f"{self.name!r}, nodes: {', '.join(shown) or 'none'}"

    @property
    def graph(self) -> PropagationGraph:
        """The propagation graph after all passes."""
        return self._compiled().graph

    def propagate(
        self,
        direction: str,
        message: Message | Mapping[str, Message] | None = None,
        forward: Message | Mapping[str, Message] | None = None,
    ) -> Propagation:
        """Pass messages through the network.

        Args:
            direction: ``"forward"``; or ``"backward"``, which goes forward first, then back.
            message: what waits at the beginning: a message for all nodes where the pass begins, or one for
                each of some nodes, by name.
            forward: likewise, where the forward pass begins that comes before a reverse pass.

        Returns:
            what was left, and the nodes.

        Raises:
            MessageError: a message that cannot be sent or merged.
            PropcValueError: an unknown direction or node.
        """
        return self._compiled().propagate(direction, message, forward)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_ready": None}  # compiled anew in the copy

    def _compiled(self) -> _Ready:
        if self._ready is None:
            with without_collection():
                self._ready = self._compile()
        return self._ready

    def _compile(self) -> _Ready:
        records = {**self._records, "output": Output(name="output", outputs=())}
        pipeline = Pipeline((*self.passes, DropIdle(), RouteMessages(), Schedule()))
        return _Ready(pipeline.run(PropagationGraph(self.name, None, records)), self.estimator_state)


Initial = Message | Mapping[str, Message] | None


class _Ready:
    """A network ready to run."""

    def __init__(self, graph: PropagationGraph, state: EstimatorState) -> None:
        self.graph, self.memory = graph, NodeMemory(graph, state)
        self.touched: list[NodeView] = []
        views = [self.memory.view(graph.nodes[name], self.touched) for name in graph.wiring.vertices]
        self.views = {view.name: view for view in views}
        self.sweeps = {d: Sweep(Directory(graph, d), views) for d in (FORWARD, BACKWARD)}

    def propagate(self, direction: str, sent: Initial, forward: Initial) -> Propagation:
        check_call(direction, sent, forward)
        for view in self.touched:
            view.clear()
        self.touched.clear()
        last = self.sweeps[direction]
        initial = self._initial(sent, last)
        start = self.memory.waiting(), self._initial(forward, self.sweeps[FORWARD])
        posts: list[Post] = []
        if direction == BACKWARD:
            posts.append(self.sweeps[FORWARD].run(*start))
            posts.append(last.run(initial))
        else:
            posts.append(last.run(*start, initial))
        self.memory.keep(*(post.kept for post in posts))
        return Propagation(posts[-1].left(), self.views)

    def _initial(self, sent: Initial, sweep: Sweep) -> dict[str, Message]:
        if sent is None:
            return {}
        if isinstance(sent, Message):
            ends = [name for name in self.views if not self._before(name, sweep)]
            return {name: copied(sent) for name in ends}
        for name in sent:
            if name not in self.views:
                raise PropcValueError(message(f"no node {name!r} takes messages", nearest(name, self.views)))
        return {name: copied(each) for name, each in sent.items()}

    def _before(self, name: str, sweep: Sweep) -> tuple[str, ...]:
        """Who is visited right before a node."""
        wiring = self.graph.wiring
        return (wiring.parents if sweep.directory.direction == FORWARD else wiring.children)[name]
