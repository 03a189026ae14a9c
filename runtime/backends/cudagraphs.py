"""The `cudagraphs` backend: the whole schedule, forward and reverse, captured once on a GPU and replayed.

What is captured are the stages of the `inductor` backend where there is Triton, else the steps as they are. Inputs are
copied into memory of the graphs, results out of it. The device's own generator draws the noise: a replay draws what the
same calls would have drawn.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.autograd import Function

from propc.errors import BackendError, message
from propc.runtime.autograd.tokens import applied
from propc.runtime.backend import Backend, Report
from propc.runtime.backends.inductor.compiled_units import obstacle
from propc.runtime.backends.inductor.inductor import Inductor
from propc.runtime.lowering.lowering import LOOKS
from propc.runtime.observe.watcher import REPLAY, label_of
from propc.runtime.plan.code_writer import straight
from propc.runtime.plan.step import Plan, Step, Values
from propc.runtime.planned_graph import PlannedGraph
from propc.util.torch_private import has_triton
from propc.util.torch_rng import set_state, state_of

# Runs before a capture, in which libraries set themselves up: as many as torch.cuda.make_graphed_callables takes.
WARMUP = 3


class CudaGraphs(Backend):
    """One replay for the forward pass and one for the reverse pass."""

    name: ClassVar[str] = "cudagraphs"

    def require(self, devices: Sequence[torch.device]) -> None:
        if not torch.cuda.is_available():
            raise BackendError(
                message(
                    "backend 'cudagraphs' needs a CUDA device, and torch finds none",
                    "Use backend='inductor' or 'eager', or install a build of torch for CUDA.",
                )
            )
        if len(devices) != 1 or devices[0].type != "cuda":
            found = ", ".join(map(str, devices))
            raise BackendError(
                message(
                    f"backend 'cudagraphs' needs all tensors of the program on one CUDA device; some are on {found}",
                    "Move the arguments and parameters there, or use backend='inductor' or 'eager'.",
                )
            )

    def plan(self, planned: PlannedGraph, values: Values) -> tuple[Plan, Report]:
        plan, report = _compiled(planned, values)
        report = replace(report, backend=self.name)
        why = _hindrance(planned)
        if why is None:
            try:
                captured = Captured(planned, plan, values)
            except RuntimeError as error:  # what CUDA does not let a graph do
                why = f"CUDA cannot capture it: {str(error).splitlines()[0]}"
            else:
                return [captured.step()], report
        return plan, replace(report, apart=(*report.apart, ("the whole schedule", f"not captured, {why}")))


def _compiled(planned: PlannedGraph, values: Values) -> tuple[Plan, Report]:
    if has_triton():
        return Inductor().plan(planned, values)
    return planned.plan, Report(CudaGraphs.name)


def _hindrance(planned: PlannedGraph) -> str | None:
    """What keeps a schedule from being captured; None if nothing is known to."""
    if planned.graph.schedule.blocks:
        return "blocks run again from a state of the generator"
    found = ((node.name, obstacle(planned, node)) for node in planned.graph)
    return next((f"{name}: {why}" for name, why in found if why and why != LOOKS), None)


class GraphCapture:
    """What a function does on the current device, captured; a replay does it again in the same memory.

    Attributes:
        made: what it gave, in memory that replays write.
    """

    def __init__(self, run: Callable[[], Sequence[Tensor]], pool: Any = None) -> None:
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph, pool=pool):
            self.made = run()

    @property
    def pool(self) -> Any:
        """The memory that a later recording may share."""
        return self.graph.pool()

    def replay(self) -> None:
        """Do it again."""
        self.graph.replay()


class _Pending:
    """A call whose reverse pass may still come."""


class Captured:
    """A plan, captured, as the function of one call: from inputs and held tensors to what is returned.

    The memory of the recordings holds what one reverse pass needs. While that may still come, another forward pass
    runs step by step; so does a second reverse pass, and one that is to be differentiated again.

    Args:
        planned: with everything on one CUDA device.
        plan: what is captured.
        values: of an earlier call.
        record: captures a function; tests on machines without a GPU give their own.
    """

    def __init__(
        self,
        planned: PlannedGraph,
        plan: Plan,
        values: Values,
        record: Callable[..., GraphCapture] = GraphCapture,
    ) -> None:
        places = planned.places
        self.planned, self.line = planned, straight(plan, places.given, places.returned)
        self.own = len(places.inputs)  # the rest are held by the program, and read where they are
        self.record = record
        self._capture([values[place] for place in places.given])

    def step(self) -> Step:
        """The one step of the plan that it makes."""
        graph, places = self.planned.graph, self.planned.places
        nodes = tuple({step.node.name: step.node for step in self.planned.plan}.values())
        return Step(graph.output, self, places.given, places.returned, ((label_of(REPLAY, nodes), nodes),))

    def _leaf(self, index: int, value: Tensor) -> Tensor:
        home = value.detach()
        return (home.clone() if index < self.own else home).requires_grad_(value.requires_grad)

    def _capture(self, given: Sequence[Tensor]) -> None:
        self.leaves = [self._leaf(i, value) for i, value in enumerate(given)]
        self.device = self.leaves[0].device if self.leaves else torch.device("cuda")
        self.wanted = [i for i, leaf in enumerate(self.leaves) if leaf.requires_grad]
        self.pending: Callable[[], _Pending | None] = lambda: None
        state = state_of(self.device)
        with torch.enable_grad() if self.wanted else torch.no_grad():
            self._warm_up()
            self.forward = self.record(self._run)
            self._expect(self.forward.made)
            self.reverse = self.record(lambda: self._pull(self.forward.made), self.forward.pool) if self.live else None
        set_state(self.device, state)

    def _expect(self, made: Sequence[Tensor]) -> None:
        """Make room for cotangents."""
        self.live = [i for i, value in enumerate(made) if value.requires_grad]
        self.cotangents = [torch.zeros_like(made[i]) for i in self.live]

    def _warm_up(self) -> None:
        if self.device.type != "cuda":
            return
        stream = torch.cuda.Stream(self.device)
        stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(stream):
            for _ in range(WARMUP):
                made = self._run()
                self._expect(made)
                if self.live:
                    self._pull(made)
        torch.cuda.current_stream(self.device).wait_stream(stream)

    def _run(self, *given: Tensor) -> Sequence[Tensor]:
        """One forward pass, on the leaves or on other tensors."""
        return self.line(*(given or self.leaves))

    def _pull(self, made: Sequence[Tensor]) -> list[Tensor]:
        ends, wanted = [made[i] for i in self.live], [self.leaves[i] for i in self.wanted]
        found = torch.autograd.grad(ends, wanted, self.cotangents, allow_unused=True)
        return [torch.zeros_like(leaf) if grad is None else grad for leaf, grad in zip(wanted, found)]

    def __call__(self, *given: Tensor) -> Sequence[Tensor]:
        """Replay; what is returned lies in memory of its own."""
        held = zip(given[self.own :], self.leaves[self.own :])
        if any(value.data_ptr() != leaf.data_ptr() for value, leaf in held):
            self._capture(given)  # a held tensor has moved
        if self.pending() is not None:
            return self._run(*given)
        if self.reverse is None or not torch.is_grad_enabled():
            return self.replay(given)
        found: tuple[Tensor, ...] = _replayed(self, *given)
        return found

    def replay(self, given: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """One forward replay."""
        with torch.no_grad():
            for leaf, value in zip(self.leaves[: self.own], given):
                leaf.copy_(value)
        self.forward.replay()
        return tuple(value.detach().clone() for value in self.forward.made)

    def pull(self, arrived: Sequence[Tensor | None]) -> list[Tensor]:
        """One reverse replay; cotangents on the leaves that want one."""
        assert self.reverse is not None
        for i, place in zip(self.live, self.cotangents):
            cotangent = arrived[i]
            place.zero_() if cotangent is None else place.copy_(cotangent)
        self.reverse.replay()
        return [grad.clone() for grad in self.reverse.made]

    def again(self, seed: Tensor, given: Sequence[Tensor]) -> Sequence[Tensor]:
        """The steps one by one, from the random numbers of an earlier replay."""
        before = state_of(self.device)
        set_state(self.device, seed)
        try:
            return self._run(*given)
        finally:
            set_state(self.device, before)


class _Replayed(Function):
    """(inputs, held) → what is returned."""

    @staticmethod
    def forward(ctx: Any, captured: Captured, *given: Tensor) -> tuple[Tensor, ...]:
        ctx.captured, ctx.seed, ctx.pending = captured, state_of(captured.device), _Pending()
        captured.pending = weakref.ref(ctx.pending)
        found = captured.replay(given)
        ctx.save_for_backward(*given)
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*(value for i, value in enumerate(found) if i not in captured.live))
        return found

    @staticmethod
    def backward(ctx: Any, *arrived: Tensor | None) -> tuple[Tensor | None, ...]:
        captured: Captured = ctx.captured
        given = ctx.saved_tensors
        latest, ctx.pending = ctx.pending is not None, None  # from now on another call may use the memory
        if torch.is_grad_enabled() or not latest:
            return (None, *_step_by_step(captured, ctx.seed, given, arrived))
        grads = dict(zip(captured.wanted, captured.pull(arrived)))
        return (None, *(grads.get(i) for i in range(len(given))))


_replayed = applied(_Replayed)


def _step_by_step(
    captured: Captured, seed: Tensor, given: Sequence[Tensor], arrived: Sequence[Tensor | None]
) -> list[Tensor | None]:
    twice = torch.is_grad_enabled()
    if not twice:
        given = [value.detach().requires_grad_(value.requires_grad) for value in given]
    with torch.enable_grad():
        made = captured.again(seed, given)
    pairs = [(made[i], arrived[i]) for i in captured.live if arrived[i] is not None]
    if not pairs:
        return [None] * len(given)
    ends, cotangents = zip(*pairs)
    wanted = [given[i] for i in captured.wanted]
    grads = torch.autograd.grad(ends, wanted, cotangents, allow_unused=True, create_graph=twice)
    found = dict(zip(captured.wanted, grads))
    return [found.get(i) for i in range(len(given))]
