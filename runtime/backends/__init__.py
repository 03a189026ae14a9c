"""Backends: what runs the plan of a graph, and the table of their names.

Given a plan, a backend gives something that runs it with the same numbers, and a report of what it made of it. They
may import messaging, plans and all below.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from propc.errors import PropcTypeError, PropcValueError, message, nearest
from propc.runtime.backend import Backend, Report
from propc.util.name_table import check_entry, check_name

__all__ = ["BACKENDS", "EAGER", "Backend", "Report", "backend", "known_backends", "register_backend"]

EAGER = "eager"
Made = TypeVar("Made", bound=Callable[[], Backend])


def _inductor() -> Backend:
    from propc.runtime.backends.inductor.inductor import Inductor  # each takes a while to import

    return Inductor()


def _cudagraphs() -> Backend:
    from propc.runtime.backends.cudagraphs import CudaGraphs

    return CudaGraphs()


def _auto() -> Backend:
    from propc.runtime.backends.auto import Auto

    return Auto()


def _eager() -> None:
    """The plan runs as it is."""


_TABLE: dict[str, Callable[[], Backend | None]] = {
    EAGER: _eager,
    "inductor": _inductor,
    "cudagraphs": _cudagraphs,
    "auto": _auto,
}
BACKENDS = tuple(_TABLE)  # those that propc has itself


def register_backend(name: str) -> Callable[[Made], Made]:
    """Decorator of a `Backend` class, or of a function that makes one: known by `name` in ``backend=``.

    Raises:
        PropcTypeError: a name that is no string; neither a backend class nor a function.
        PropcValueError: the name is taken by another.
    """
    check_name(name, "a backend", "propc.register_backend")

    def register(make: Made) -> Made:
        check_entry(_TABLE, name, make, "a backend", Backend, classes=False)
        _TABLE[name] = make
        if isinstance(make, type):
            make.name = name  # type: ignore[attr-defined]
        return make

    return register


def known_backends() -> tuple[str, ...]:
    """The names that ``backend=`` takes, those of propc first."""
    return tuple(_TABLE)


def check_backend(name: object) -> None:
    """Check a name.

    Raises:
        PropcValueError: it is unknown; the message lists the known ones and the nearest.
    """
    if name not in known_backends():
        raise PropcValueError(message(f"unknown backend {name!r}", nearest(str(name), _TABLE)))


def backend(name: str) -> Backend | None:
    """The backend of this name; None is `eager`, which runs the plan as it is.

    Raises:
        PropcValueError: an unknown name.
        PropcTypeError: what was registered makes something else.
    """
    check_backend(name)
    made = _TABLE[name]()
    if made is not None and not isinstance(made, Backend):
        raise PropcTypeError(
            message(f"what makes the backend {name!r} gives {made!r}", "Let it give a propc.runtime.backends.Backend.")
        )
    return made
