"""Errors and warnings: site, place, finding, fix."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from difflib import get_close_matches

import torch


class PropcError(Exception):
    """Base of every error that propc raises on purpose.

    The message names the site (or cost, pass, option), the user's file and line
    where there is one, what was found, and what to do about it. Concrete errors
    are a `ValueError` or a `TypeError` too, so ordinary handlers catch them.
    """


class PropcValueError(PropcError, ValueError):
    """A value propc cannot work with: an option, a name, a shape, a parameter."""


class PropcTypeError(PropcError, TypeError):
    """An object of the wrong kind: not a tensor, not a distribution, not an estimator."""


class TraceError(PropcValueError):
    """The program cannot be traced: control flow on a traced value, a hidden tensor."""


class EstimatorError(PropcValueError):
    """An estimator that cannot work at a site or for a cost."""


ErrorAt = Callable[[str, str], EstimatorError]
"""Makes the error at a site, of a finding and a fix."""


class GraphError(PropcValueError):
    """A propagation graph that breaks an invariant; raised by `verify()`."""


class ScanError(GraphError):
    """Steps of a long `propc.scan` that are not alike, so that they cannot be one node.

    Attributes:
        length: how many steps the scan has.
        longest: scans up to this length are traced step by step instead, with a warning.
    """

    length: int = 0
    longest: int = 1000  # at some 2 ms a site (benchmarks/compile_time.py) they take seconds to compile


class StepError(ScanError, EstimatorError):
    """Something in a long `propc.scan` that needs every step to be a node of its own."""


class MessageError(PropcValueError):
    """A message that cannot be sent, merged or read: an unknown field or target, a cycle, two senders of one."""


class MissingFieldError(MessageError, AttributeError):
    """A field that is read of a message that does not have it."""


class NonFiniteError(PropcValueError):
    """A NaN or infinite cost, a parameter of a distribution that it does not allow, a value outside of its support."""


class BiasError(PropcError, AssertionError):
    """An estimator whose mean gradient is not that of its reference; raised by `propc.check`.

    Attributes:
        coordinates: the names of those that differ, such as ``"theta[2, 0]"``.
    """

    coordinates: tuple[str, ...] = ()


class OutOfMemoryError(PropcError, torch.OutOfMemoryError, MemoryError):
    """A device has no memory left for a value of the program."""


class BackendError(PropcValueError):
    """A backend that cannot run on this device, or lacks what it needs."""


class PropcWarning(UserWarning):
    """Something legal that is rarely meant, such as a parameter that gets no gradient."""


def message(finding: str, fix: str = "", *, at: str = "", where: object = None) -> str:
    """Join the four parts of a message: place, finding and fix.

    Args:
        finding: what was found, a sentence without a final period.
        fix: what to do, a sentence; may be empty.
        at: the thing at fault, such as ``"site 'z'"``.
        where: the user's file and line, or None.
    """
    place = f"at {at}" if at else ""
    if where is not None and str(where):
        place = f"{place} ({where})".strip()
    text = f"{place}: {finding}." if place else f"{finding}."
    return f"{text} {fix}".strip()


def nearest(name: str, known: Iterable[str]) -> str:
    """Say which names are known and which is the nearest to a misspelt one."""
    names = sorted(known)
    plain = {each.lower(): each for each in reversed(names)}
    close = get_close_matches(name, names, n=1, cutoff=0.5) or [
        plain[each] for each in get_close_matches(name.lower(), plain, n=1, cutoff=0.5)
    ]
    hint = f"Did you mean {close[0]!r}? " if close else ""
    return f"{hint}Known: {', '.join(map(repr, names)) or 'none'}."
