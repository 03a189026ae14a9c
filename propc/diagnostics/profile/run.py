"""`compiled.profile(...)`."""

from __future__ import annotations

from typing import Any

import torch

from propc.diagnostics.comparison.steps import Situation
from propc.diagnostics.comparison.wrt import chosen, leaves_of
from propc.diagnostics.profile.bench import Bench
from propc.diagnostics.profile.node_rows import parts
from propc.diagnostics.profile.picture import ProfiledGraph
from propc.diagnostics.profile.profile import Profile
from propc.diagnostics.profile.timers import timer_of
from propc.errors import PropcValueError, message
from propc.propagators.sites.samples import positive
from propc.runtime.observe.watcher import profiling
from propc.runtime.runnable import Runnable
from propc.util.stopwatch import Seconds


def profiled(program: Any, args: tuple[Any, ...], kwargs: dict[str, Any], repeats: int, backward: bool) -> Profile:
    """Profile a call of a compiled program.

    Raises:
        PropcValueError: no repeats; a PyTorch profiler is active; no cost is returned.
    """
    positive("repeats", repeats)
    if profiling():
        raise PropcValueError(
            message(
                "a PyTorch profiler is active, and profile() uses one itself",
                "Call it outside; inside, the nodes of a call have names in the profiler.",
            )
        )
    with torch.set_grad_enabled(backward or torch.is_grad_enabled()):
        return _profiled(program, args, kwargs, repeats, backward)


def _profiled(program: Any, args: tuple[Any, ...], kwargs: dict[str, Any], repeats: int, backward: bool) -> Profile:
    compiler, owner = program._compiler(), program._owner()
    apart, own = compiler.apart(owner, args, kwargs), compiler.compiled(owner, args, kwargs)
    compiled = apart.compiled(owner, args, kwargs)
    leaves = leaves_of(compiled.graph, owner, args, kwargs)
    backward = backward and any(tensor.requires_grad for _, tensor in leaves)
    situation = Situation.of(compiled.graph, leaves, chosen(leaves, None) if backward else {}, args, kwargs)

    def call(*args: Any, **kwargs: Any) -> Any:
        return apart(owner, args, kwargs)

    bench = Bench(call, situation, timer_of(situation.devices), backward)
    with situation.undisturbed():
        situation.seed(0)
        times = bench.times(repeats)
        memory = bench.memory()
    found = parts(compiled.executable.labelled, times, memory)
    return Profile(
        compiler.name,
        repeats,
        times.forward,
        times.reverse,
        memory.peak,
        (*own.seconds, *(_backend(own.executable) or _backend(compiled.executable))),
        compiler.traces,
        ProfiledGraph(compiled.graph, tuple(found)),
        times.intervals,
    )


def _backend(run: Runnable) -> Seconds:
    """What a backend has spent on compiling, if it has."""
    report = run.report
    return () if report is None or report.waiting else ((report.backend, report.seconds),)
