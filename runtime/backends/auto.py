"""The `auto` backend: tries the others on the first call's values, and keeps the quickest."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor

from propc.errors import BackendError
from propc.ir.nodes.opaque import Opaque
from propc.runtime.backend import Backend, Report
from propc.runtime.backends.cudagraphs import CudaGraphs
from propc.runtime.backends.inductor.inductor import Inductor
from propc.runtime.plan.runner import Line
from propc.runtime.plan.step import Plan, Values
from propc.runtime.planned_graph import PlannedGraph
from propc.util.torch_rng import from_state, state_of

# Steps of which the quickest counts. A choice, which bounds what the first call costs; of the first ones, in which
# torch sets itself up, none counts.
TRIALS = 7


class Auto(Backend):
    """Measures a forward and reverse pass on each backend that can run here.

    Measuring leaves no trace: random numbers and what estimators keep are put back. A program with black boxes, which
    cannot be run without a trace, is not measured: it runs on `inductor` where that can, black boxes apart.
    """

    name: ClassVar[str] = "auto"

    def plan(self, planned: PlannedGraph, values: Values) -> tuple[Plan, Report]:
        plans = dict(_candidates(planned, values))
        if any(isinstance(node, Opaque) for node in planned.graph):
            name = "inductor" if "inductor" in plans else "eager"
            plan, report = plans[name]
            return plan, replace(report, backend=f"auto: {name}, not measured as there are black boxes")
        measured = tuple((name, seconds(planned, plan, values)) for name, (plan, _) in plans.items())
        name, _ = min(measured, key=lambda each: each[1])
        plan, report = plans[name]
        return plan, replace(report, backend=f"auto: {name}", measured=measured)


def _candidates(planned: PlannedGraph, values: Values) -> Iterator[tuple[str, tuple[Plan, Report]]]:
    """The backends that can run here, with their plans."""
    devices = list(dict.fromkeys(kind.device for node in planned.graph for kind in node.outputs))
    yield "eager", (planned.plan, Report("eager"))
    for backend in (Inductor(), CudaGraphs()):
        try:
            backend.require(devices)
        except BackendError:
            continue
        yield backend.name, backend.plan(planned, values)


def seconds(planned: PlannedGraph, plan: Plan, values: Values) -> float:
    """What a forward and a reverse pass take, of several the least.

    Args:
        values: all values of a call; inputs and held tensors are taken from there.
    """
    line, places = planned.line_of(plan), planned.places
    found = []
    with _without_trace(planned):
        for _ in range(TRIALS):
            given = [values[place].detach().requires_grad_(values[place].requires_grad) for place in places.given]
            start = _now(given)
            _step(planned, line, given)
            found.append(_now(given) - start)
    return min(found)


def _step(planned: PlannedGraph, line: Line, given: Sequence[Tensor]) -> None:
    planned.planner.sites.begin()
    ends = [end for end, aside in zip(line(*given), planned.graph.output.guarded) if not aside]
    live = [end for end in ends if end.requires_grad]
    wanted = [value for value in given if value.requires_grad]
    if live and wanted:
        torch.autograd.grad(live, wanted, [torch.ones_like(end) for end in live], allow_unused=True)


def _now(values: Sequence[Tensor]) -> float:
    if any(value.is_cuda for value in values):
        torch.cuda.synchronize()
    return time.perf_counter()


@contextmanager
def _without_trace(planned: PlannedGraph) -> Iterator[None]:
    """Put random numbers and what estimators keep back as they were; values are not checked."""
    kept = copy.deepcopy(planned.state.state_dict())
    devices = {torch.device("cpu"), *(kind.device for node in planned.graph for kind in node.outputs)}
    with ExitStack() as stack:
        stack.enter_context(planned.mode.unchecked())
        for device in devices:
            stack.enter_context(from_state(device, state_of(device)))
        try:
            yield
        finally:
            planned.state.load_state_dict(kept)
