"""States of random generators: drawing from the same random numbers again."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

STATE = 5056  # bytes of a state of the CPU's generator


def state_of(device: torch.device) -> Tensor:
    """The state of a device's default generator."""
    if device.type == "cpu":
        return torch.random.get_rng_state()
    state: Tensor = torch.get_device_module(device).get_rng_state(device)
    return state


def state_unless_captured(device: torch.device) -> Tensor | None:
    """The state of a device's default generator; None where operations are captured, and cannot be asked for it."""
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        return None
    return state_of(device)


def set_state(device: torch.device, state: Tensor) -> None:
    """Set the state of a device's default generator."""
    if device.type == "cpu":
        torch.random.set_rng_state(state)
    else:
        torch.get_device_module(device).set_rng_state(state, device)


def seed(device: torch.device, number: int) -> None:
    """Seed a device's default generator alone; `torch.manual_seed` seeds all, and takes milliseconds without them."""
    if device.type == "cpu":
        torch.default_generator.manual_seed(number)
    else:
        torch.get_device_module(device).manual_seed_all(number)


def seed_all(number: int) -> None:
    """Seed the default generators of the CPU and of the accelerator, where there is one."""
    torch.default_generator.manual_seed(number)
    device = torch.accelerator.current_accelerator(check_available=True)
    if device is not None:
        seed(device, number)


@contextmanager
def from_state(device: torch.device, state: Tensor) -> Iterator[None]:
    """Draw from a state on, then go on from where the generator was before."""
    before = state_of(device)
    set_state(device, state)
    try:
        yield
    finally:
        set_state(device, before)


def random_states() -> dict[str, Any]:
    """The states of all global generators, by a name for people."""
    states: dict[str, Any] = {SEEDED: torch.get_rng_state(), "Python's random module": random.getstate()}
    if "numpy" in sys.modules:
        states["numpy.random"] = sys.modules["numpy"].random.get_state(legacy=True)
    return states


def restore_random(states: Mapping[str, Any]) -> None:
    """Set the global generators back."""
    if SEEDED in states:
        torch.set_rng_state(states[SEEDED])
    random.setstate(states["Python's random module"])
    if "numpy.random" in states:
        sys.modules["numpy"].random.set_state(states["numpy.random"])


@contextmanager
def same_random() -> Iterator[None]:
    """Put all global generators back where they were, those of other devices included."""
    states = random_states()
    with torch.random.fork_rng():
        try:
            yield
        finally:
            restore_random(states)


SEEDED = "torch"
