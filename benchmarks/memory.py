"""Memory of a step, counted in allocations: deterministic, blind to the rest of the process.

On CPU every allocation and release of the tensor allocator is read from the profiler's
memory events; on CUDA the caching allocator keeps the count itself.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch.profiler import ProfilerActivity, profile

__all__ = ["peak_bytes"]


def peak_bytes(step: Callable[[], object], device: torch.device) -> int:
    """Bytes that a step holds at its peak, beyond what was held before it."""
    step()
    return _peak_cuda(step, device) if device.type == "cuda" else _peak_cpu(step)


def _peak_cpu(step: Callable[[], object]) -> int:
    # Up to torch 2.11 the profiler warns that it forgets events of earlier cycles unless it is told not to.
    options = {"activities": [ProfilerActivity.CPU], "profile_memory": True, "acc_events": True}
    with _quiet_stderr(), profile(**options) as seen:
        step()
    results = seen.profiler.kineto_results if seen.profiler else None
    if results is None:
        raise RuntimeError("the profiler recorded nothing")
    held = peak = 0
    events = (event for event in results.events() if event.name() == "[memory]")
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def _peak_cuda(step: Callable[[], object], device: torch.device) -> int:
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    step()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


@contextmanager
def _quiet_stderr() -> Iterator[None]:
    """Hide what the profiler's own library writes to file descriptor 2."""
    kept = os.dup(2)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
