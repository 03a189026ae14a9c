"""Random number generators that a program holds, Python's and NumPy's: their numbers would freeze into a graph."""

from __future__ import annotations

import copy
import random
import sys
from typing import Any


def is_generator(value: Any) -> bool:
    """Whether this is a `random.Random`, a `numpy.random.Generator` or a `numpy.random.RandomState`."""
    numpy = sys.modules.get("numpy")
    kinds = (random.Random,) if numpy is None else (random.Random, numpy.random.Generator, numpy.random.RandomState)
    return isinstance(value, kinds)


def generator_state(generator: Any) -> Any:
    """Its state, to be compared and put back."""
    if isinstance(generator, random.Random):
        return generator.getstate()
    bits = getattr(generator, "bit_generator", None)
    return generator.get_state(legacy=True) if bits is None else copy.deepcopy(bits.state)


def set_generator_state(generator: Any, state: Any) -> None:
    """Put a state back."""
    if isinstance(generator, random.Random):
        generator.setstate(state)
    elif (bits := getattr(generator, "bit_generator", None)) is not None:
        bits.state = state
    else:
        generator.set_state(state)
