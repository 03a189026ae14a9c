"""Backends: what runs the plan of a graph."""

from __future__ import annotations

from propc.runtime.backend import Backend, Report

__all__ = ["BACKENDS", "EAGER", "Backend", "Report", "backend"]

EAGER = "eager"
BACKENDS = (EAGER, "inductor", "cudagraphs", "auto")


def backend(name: str) -> Backend | None:
    """The backend of this name; None is `eager`, which runs the plan as it is."""
    if name == "inductor":
        from propc.runtime.backends.inductor.inductor import Inductor

        return Inductor()
    if name == "cudagraphs":
        from propc.runtime.backends.cudagraphs import CudaGraphs

        return CudaGraphs()
    if name == "auto":
        from propc.runtime.backends.auto import Auto

        return Auto()
    return None
