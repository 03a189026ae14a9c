"""A trace leaves nothing behind: not in torch, not in a random number generator, not in the user's objects."""

from __future__ import annotations

import gc
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import CellType
from typing import Any

import torch
from torch import nn
from torch.distributions import Distribution

from propc.errors import TraceError, message
from propc.frontend.dynamo import dynamo_asleep, others_ran, runs
from propc.frontend.environment.collect import Place, Surroundings, changes
from propc.frontend.environment.leaks import reaches_traced
from propc.frontend.environment.writes import is_renewed, kept
from propc.types import Source
from propc.util.foreign_rng import generator_state, set_generator_state
from propc.util.torch_private import FAKE_TENSOR_LOG, patched_apply, validates_args
from propc.util.torch_rng import SEEDED, random_states, restore_random

TRACING = threading.RLock()  # one thread at a time


@contextmanager
def without_collection() -> Iterator[None]:
    """Pause the garbage collector: compiling makes many objects and drops few, and a third of its time went there."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


@contextmanager
def isolated(around: Surroundings, recorded_apply: Any, where: Source) -> Iterator[None]:
    """Run a trace with custom autograd functions visible; restore everything after.

    Args:
        around: what the program reaches, where it could write.
        recorded_apply: stands for `torch.autograd.Function.apply`, also where a program calls an
            alias of it (``clip = Clip.apply``).
        where: the user's function.

    Raises:
        TraceError: the traced code seeded a generator, drew from one of Python's or NumPy's, whose
            numbers would freeze into constants, or kept a traced tensor.
    """
    with TRACING:
        validate, grad, dtype = validates_args(), torch.is_grad_enabled(), torch.get_default_dtype()
        states, silent, before = random_states(), FAKE_TENSOR_LOG.disabled, runs()
        held = [(path, generator, generator_state(generator)) for path, generator in around.generators]
        FAKE_TENSOR_LOG.disabled = True
        try:
            with patched_apply(recorded_apply), dynamo_asleep():
                yield
            _check_random(_ours(states, before), held, where)
        except BaseException:
            _restore(around.places)
            raise
        else:
            _check_places(_restore(around.places), where)
        finally:
            FAKE_TENSOR_LOG.disabled = silent
            Distribution.set_default_validate_args(validate)
            torch.set_grad_enabled(grad)
            torch.set_default_dtype(dtype)
            restore_random(_ours(states, before))
            for _, generator, state in held:
                set_generator_state(generator, state)
            for cache in filter(reaches_traced, around.caches):
                cache.cache_clear()


def _ours(states: Mapping[str, Any], before: Mapping[int, int]) -> Mapping[str, Any]:
    """The states without that of torch's generator if another thread has drawn from it in a compiled call."""
    return {name: state for name, state in states.items() if name != SEEDED} if others_ran(before) else states


def _check_random(before: Mapping[str, Any], held: Iterable[tuple[str, Any, Any]], where: Source) -> None:
    now = random_states()
    moved = [name for name, state in before.items() if not _same(state, now[name])]
    moved += [f"the generator {name!r}" for name, own, state in held if not _same(state, generator_state(own))]
    if SEEDED in moved:
        raise TraceError(
            message(
                "the function seeds torch (torch.manual_seed), or draws in a way that a trace cannot see",
                "Seed outside the compiled function, or wrap the code in propc.opaque.",
                where=where,
            )
        )
    if moved:
        raise TraceError(
            message(
                f"the function draws from {' and '.join(moved)}, whose numbers would freeze into the graph",
                "Draw with torch, mark the draw with propc.sample, or wrap it in propc.opaque.",
                where=where,
            )
        )


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, tuple):
        return all(map(_same, a, b))
    if isinstance(a, dict):
        return all(_same(value, b[key]) for key, value in a.items())
    return bool((a == b).all()) if hasattr(a, "shape") else bool(a == b)


# -- what the program wrote ------------------------------------------------------------------


def _restore(places: Iterable[Place]) -> list[str]:
    """Put back what the trace has left in the user's objects.

    Returns:
        names of the places where a later call cannot put its own.
    """
    places = list(places)
    fixed = [each.name for each in kept(places) if not each.renewable]
    moved: set[tuple[int, Any]] = set()
    for place in places:
        keys = [key for key, value in changes(place) if is_renewed(value)]
        if keys:
            _put_back(place, keys)
            moved.update((id(place.owner), key) for key in keys)
    for place in places:
        if isinstance(place.owner, nn.Module):  # which moves what was None among its parameters or modules
            gone = [key for key in place.copy if (id(place.owner), key) in moved and key not in place.container]
            place.container.update({key: place.copy[key] for key in gone})
    return fixed


def _put_back(place: Place, keys: list[Any]) -> None:
    if isinstance(place.container, CellType):
        place.container.cell_contents = place.copy
    elif isinstance(place.container, list):
        place.container[:] = place.copy
    elif isinstance(place.container, (set, deque)):
        place.container.clear()
        (place.container.update if isinstance(place.container, set) else place.container.extend)(place.copy)
    else:
        for key in keys:
            if key in place.copy:
                place.container[key] = place.copy[key]
            else:
                del place.container[key]


def _check_places(written: list[str], where: Source) -> None:
    if written:
        raise TraceError(
            message(
                f"the function keeps a traced tensor in {', '.join(map(repr, written))}, where a later call would not "
                "renew it",
                "Return it, keep it in an attribute, or write into a tensor that is there already: "
                "'buffer.copy_(value)', 'values[t] = value'. Make layers and parameters before the first call.",
                where=where,
            )
        )
