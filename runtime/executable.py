"""Running a scheduled graph: a list of small steps over a table of values.

The forward pass is a loop over steps. The reverse pass has no code here: sites and costs
are connected by autograd functions (`propc.runtime.autograd.tokens`), so the user's `backward()`
runs it, in one call of the engine.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from propc.ir.graph import PropagationGraph
from propc.ir.nodes.node import Node
from propc.ir.repeatable import beside_writes
from propc.runtime.autograd.run_once import EffectLog
from propc.runtime.backend import Backend, Report, Violated
from propc.runtime.checks import values as checks
from propc.runtime.checks.out_of_memory import checking
from propc.runtime.checks.replay import Replay, fresh
from propc.runtime.observe.cotangent_probe import Probe
from propc.runtime.observe.watched_plan import heard
from propc.runtime.plan.scan_loop import rolled
from propc.runtime.plan.step import Plan, Step, Values
from propc.runtime.planned_graph import PlannedGraph
from propc.util.estimator_state import EstimatorState
from propc.util.torch_rng import same_random


class Executable(PlannedGraph):
    """A graph ready to run.

    Args:
        graph: after all passes.
        state: what estimators keep from call to call.
        validate: check parameters and costs.
        probe: hears what sites send to their φ.
        backend: runs the plan from the second call on; None runs it as it is.

    Attributes:
        report: what the backend has made of the plan; None without one.
    """

    def __init__(
        self,
        graph: PropagationGraph,
        state: EstimatorState,
        validate: bool = True,
        probe: Probe | None = None,
        backend: Backend | None = None,
    ) -> None:
        super().__init__(graph, state, validate, probe)
        self.backend = backend if probe is None else None
        self.report = None if self.backend is None else Report(self.backend.name, waiting=True)
        if self.backend is not None:
            self.backend.require(list(dict.fromkeys(kind.device for node in graph for kind in node.outputs)))
        self.replay = Replay(self.planner, self.lowered)
        kinds = [(i, graph[ref.node].outputs[ref.port]) for i, ref in enumerate(graph.output.inputs)]
        costs = [(i, kind) for i, kind in kinds if kind.dtype.is_floating_point and len(kind.shape) < 2]
        later = [i for i, kind in costs if kind.device.type == "cpu"]  # elsewhere a check would wait for the device
        self._looked_at = [i for i, _ in costs], later  # in the first call, and in later ones
        self.use(self.plan)

    def run(self, inputs: Sequence[Tensor], held: Sequence[Tensor]) -> Sequence[Tensor]:
        """One forward pass; the returned tensors in flattened order."""
        self.planner.sites.begin()
        seed = torch.default_generator.get_state() if self.mode.validate else None
        first = not self.mode.checked and (seed is not None or self.backend is not None)
        given = (*inputs, *held)
        returned = self._first(given, seed) if first else self._later(given, seed)
        self.mode.checked = True
        return returned

    def use(self, plan: Plan) -> None:
        """Run this plan from now on."""
        self.line = self.line_of(plan)

    @property
    def labelled(self) -> dict[str, tuple[Node, ...]]:
        """The nodes of each name that a watcher hears."""
        return heard(self.line.plan)

    def _later(self, given: Sequence[Tensor], seed: Tensor | None) -> Sequence[Tensor]:
        """What a later call returns."""
        try:
            returned = self.line(*given)
        except Violated:
            assert seed is not None
            self.again(given, seed)  # says which parameter it is
            raise
        if seed is not None:
            self.check_costs(returned, lambda: self.again(given, seed))
        return returned

    def _first(self, given: Sequence[Tensor], seed: Tensor | None) -> Sequence[Tensor]:
        """What a first call returns; its values are checked, and a backend is shown them."""
        returned, every = self._run_first(given)
        if seed is not None:
            rolls = bool(self.planner.loops)
            self.check_costs(returned, lambda: self.again(given, seed) if rolls else every)
            with checking(self.graph):
                self.replay.check(every)
        self.mode.checked = True
        if self.backend is not None:
            plan, self.report = self.backend.plan(self, every)
            self.use(plan)
        return returned

    def _run_first(self, given: Sequence[Tensor]) -> tuple[Sequence[Tensor], Values]:
        """What a first call returns, and all values for its checks; there each scan has one step."""
        if self.planner.loops:
            returned = self.line(*given)
            with checking(self.graph), same_random():
                return returned, self.keeping(self.plan)(*given)
        if not self.graph.schedule.blocks:
            every = self.keeping(self.plan)(*given)
            return [every[place] for place in self.places.returned], every
        recording = EffectLog(list({kind.device for node in self.graph for kind in node.outputs}))
        with recording.running():
            returned = self.line(*given)
        with checking(self.graph), recording.repeating(recording.tensors):
            return returned, self.keeping(_forgetting(self.graph, self.plan))(*map(fresh, given))

    # -- checking -----------------------------------------------------------------------

    def check_costs(self, returned: Sequence[Tensor], every: Callable[[], Values]) -> None:
        """Look for NaN and infinity among the returned costs; if there are, find their source in all values."""
        for i in self._looked_at[self.mode.checked]:
            if not math.isfinite(returned[i].detach().sum().item()):  # if only the sum overflows, nothing is found
                error = checks.explain_failure(self.graph, self.places.named(every()))
                if error is not None:
                    raise error

    def again(self, given: Sequence[Tensor], seed: Tensor) -> Values:
        """All values of a call, with the random numbers that it drew."""
        whole = rolled(self.graph, self.plan, self.planner.loops, range(len(self.places)))
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.default_generator.set_state(seed)
            return self.keeping(whole)(*given)


def _forgetting(graph: PropagationGraph, plan: Plan) -> Plan:
    """The plan with steps that give values without history; what may be written into is copied."""
    written = beside_writes(graph)

    def apart(step: Step) -> Step:
        again, function = fresh if step.node.name in written else _bare, step.function
        return replace(
            step, function=lambda *given: [again(v) if isinstance(v, Tensor) else v for v in function(*given)]
        )

    return [apart(step) for step in plan]


def _bare(tensor: Tensor) -> Tensor:
    return tensor.detach().requires_grad_(tensor.requires_grad)
