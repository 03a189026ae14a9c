"""Running a scheduled graph: a list of small steps over a table of values.

The forward pass is a loop over steps. The reverse pass has no code here: sites and costs
are connected by autograd functions (`propc.runtime.autograd.tokens`), so the user's `backward()`
runs it, in one call of the engine.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

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
from propc.runtime.checks.values import Mode
from propc.runtime.observe.cotangent_probe import Probe
from propc.runtime.plan.codegen import StepCall, Values
from propc.runtime.plan.liveness import last_reads
from propc.runtime.plan.planner import Planner
from propc.runtime.plan.runner import Line, with_blocks
from propc.runtime.plan.scan_loop import rolled
from propc.runtime.plan.slots import Places
from propc.util.estimator_state import EstimatorState
from propc.util.torch_rng import same_random


class Executable:
    """A graph ready to run.

    Args:
        graph: after all passes.
        state: what estimators keep from call to call.
        validate: check parameters and costs.
        probe: hears what sites send to their φ.
        backend: runs the plan from the second call on; None runs it as it is.

    Attributes:
        places: of its values and tokens.
        planner: what has made the plan.
        plan: nodes with their calls, in order.
        mode: whether steps look at values.
        looked_at: the places of returned costs that are looked at in the first call, and in later ones.
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
        meta = any(kind.device.type == "meta" for node in graph for kind in node.outputs)  # there are no values there
        self.graph, self.state, self.mode = graph, state, Mode(validate and not meta)
        self.backend = backend if probe is None else None
        self.report: Report | None = None
        if self.backend is not None:
            self.backend.require(list(dict.fromkeys(kind.device for node in graph for kind in node.outputs)))
        self.places = Places(graph)
        self.planner = Planner(graph, state, self.places, self.mode)
        self.replay = Replay(graph, self.places, self.planner)
        self.plan = self.planner.plan
        kinds = [graph[ref.node].outputs[ref.port] for ref in graph.output.inputs]
        costs = [(i, k) for i, k in zip(self.places.returned, kinds) if k.dtype.is_floating_point and len(k.shape) < 2]
        later = [i for i, kind in costs if kind.device.type == "cpu"]  # elsewhere a check would wait for the device
        self.looked_at = [i for i, _ in costs], later
        if probe is not None:
            self.plan = [(node, probe.around(node, call)) for node, call in self.plan]
        whole = rolled(graph, self.plan, self.planner.loops, self.places.returned, keep=True)
        self.keeping = Line(graph, whole, [()] * len(whole))
        self._use(self.plan)

    def run(self, inputs: Sequence[Tensor], held: Sequence[Tensor]) -> list[Tensor]:
        """One forward pass; the returned tensors in flattened order."""
        self.planner.begin()
        mode = self.mode
        seed = torch.default_generator.get_state() if mode.validate else None
        first = not mode.checked and (seed is not None or self.backend is not None)
        values, every = self._first(inputs, held) if first else (self._straight(inputs, held, seed), None)
        if seed is not None:
            self.check_costs(values if every is None or self.planner.loops else every, inputs, held, seed)
            if every is not None:
                with checking(self.graph):
                    self.check_independence(every)
        mode.checked = True
        if every is not None and self.backend is not None:
            plan, self.report = self.backend.plan(self, every)
            self._use(plan)
        return [values[slot] for slot in self.places.returned]

    def _use(self, plan: Sequence[tuple[Node, StepCall]]) -> None:
        """Run this plan from now on."""
        self.straight = self.line(plan)

    def line(self, plan: Sequence[tuple[Node, StepCall]]) -> Line:
        """A plan as it is run: scans as loops, block by block where the schedule has blocks."""
        returned = self.places.returned
        plan = rolled(self.graph, plan, self.planner.loops, returned, keep=False)
        blocks = with_blocks(self.graph, plan, returned)
        return Line(self.graph, blocks, last_reads([call for _, call in blocks], returned))

    @property
    def labelled(self) -> dict[str, tuple[Node, ...]]:
        """The nodes of each name that a watcher hears."""
        return self.straight.nodes

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
        if self.planner.loops:
            values = self._forward(inputs, held, self.straight)
            with checking(self.graph), same_random():
                return values, self._forward(inputs, held, Line(self.graph, self.plan, [()] * len(self.plan)))
        if not self.graph.schedule.blocks:
            values = self._forward(inputs, held, self.keeping)
            return values, values
        recording = EffectLog(list({kind.device for node in self.graph for kind in node.outputs}))
        with recording.running():
            values = self._forward(inputs, held, self.straight)
        with checking(self.graph), recording.repeating(recording.tensors):
            written = beside_writes(self.graph)
            plan = [(node, _forgetting(call, node.name in written)) for node, call in self.plan]
            apart = Line(self.graph, plan, [()] * len(plan))
            every = self._forward([fresh(value) for value in inputs], [fresh(value) for value in held], apart)
        return values, every

    def _forward(self, inputs: Sequence[Tensor], held: Sequence[Tensor], line: Line) -> Values:
        """Run all steps of a line."""
        values = self.places.table(inputs, held)
        line.run(values)
        return values

    # -- checking -----------------------------------------------------------------------

    def check_costs(self, values: Values, inputs: Sequence[Tensor], held: Sequence[Tensor], seed: Tensor) -> None:
        """Look for NaN and infinity among the returned costs; if there are, run again to find their source."""
        for slot in self.looked_at[self.mode.checked]:
            if not math.isfinite(values[slot].detach().sum().item()):  # if only the sum overflows, nothing is found
                again = self.mode.checked or self.planner.loops
                found = self._again(inputs, held, seed) if again else values
                error = checks.explain_failure(self.graph, self.places.named(found))
                if error is not None:
                    raise error

    def check_independence(self, values: Values) -> None:
        """Check at the first call that rows, and elements of plates, do not mix."""
        if not self.mode.checked:
            self.replay.check(values)

    def _again(self, inputs: Sequence[Tensor], held: Sequence[Tensor], seed: Tensor) -> Values:
        """All values of a call, with the random numbers that it drew."""
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.default_generator.set_state(seed)
            return self._forward(inputs, held, self.keeping)


def _forgetting(call: StepCall, written: bool) -> StepCall:
    """The same without the history of what it gives; `written` says that this may be written into."""
    again = fresh if written else _bare

    def function(*values: Any) -> list[Any]:
        return [again(value) if isinstance(value, Tensor) else value for value in call.function(*values)]

    return replace(call, function=function)


def _bare(tensor: Tensor) -> Tensor:
    return tensor.detach().requires_grad_(tensor.requires_grad)
