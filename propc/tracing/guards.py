"""A trace leaves nothing behind: not in torch, not in any random number generator."""

from __future__ import annotations

import random
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch.distributions import Distribution

from propc.errors import TraceError, message

if TYPE_CHECKING:
    from propc.tracing.tracer import Tracer

_LOCK = threading.RLock()


@contextmanager
def isolated(tracer: Tracer) -> Iterator[None]:
    """Run a trace with validation off and custom autograd functions visible; restore everything after.

    Raises:
        TraceError: the traced code drew from Python's or NumPy's global generator, whose
            numbers would freeze into constants.
    """
    with _LOCK:
        validate, grad = Distribution._validate_args, torch.is_grad_enabled()
        dtype, seeds, hosts = torch.get_default_dtype(), torch.get_rng_state(), _host_states()
        apply = torch.autograd.Function.__dict__["apply"]
        Distribution._validate_args = False
        torch.autograd.Function.apply = _recorded_apply(tracer, apply)  # type: ignore[assignment, method-assign]
        try:
            yield
            drawn = [name for name, state in _host_states().items() if not _same(state, hosts[name])]
            if drawn:
                raise TraceError(message(
                    f"the function draws from {' and '.join(drawn)}, whose numbers would freeze into the graph",
                    "Draw with torch, mark the draw with propc.sample, or wrap it in propc.opaque."))
        finally:
            torch.autograd.Function.apply = apply  # type: ignore[method-assign]
            Distribution._validate_args = validate
            torch.set_grad_enabled(grad)
            torch.set_default_dtype(dtype)
            torch.set_rng_state(seeds)
            _restore_hosts(hosts)


def _recorded_apply(tracer: Tracer, original: Any) -> Any:
    """`autograd.Function.apply` as one traced operation, so that its own backward is kept."""

    def apply(cls: Any, *args: Any, **kwargs: Any) -> Any:
        from propc.tracing.tracer import active_tracer

        def call(*inner: Any, **options: Any) -> Any:
            return original.__get__(None, cls)(*inner, **options)

        if active_tracer() is not tracer:
            return call(*args, **kwargs)
        call.__name__ = call.__qualname__ = cls.__name__
        with torch._C.DisableTorchFunction():
            return tracer.record(_applied(cls, call), args, kwargs)

    return classmethod(apply)


_APPLIED: dict[Any, Any] = {}


def _applied(cls: Any, call: Any) -> Any:
    """One callable for each Function class, so that equal steps stay equal."""
    return _APPLIED.setdefault(cls, call)


def _host_states() -> dict[str, Any]:
    states: dict[str, Any] = {"Python's random module": random.getstate()}
    if "numpy" in sys.modules:
        states["numpy.random"] = sys.modules["numpy"].random.get_state(legacy=True)
    return states


def _restore_hosts(states: dict[str, Any]) -> None:
    random.setstate(states["Python's random module"])
    if "numpy.random" in states:
        sys.modules["numpy"].random.set_state(states["numpy.random"])


def _same(a: Any, b: Any) -> bool:
    return repr(a) == repr(b) if not isinstance(a, tuple) else all(
        (x == y) if not hasattr(x, "shape") else bool((x == y).all()) for x, y in zip(a, b))
