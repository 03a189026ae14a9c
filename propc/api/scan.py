"""`propc.scan`: a long loop whose steps are all alike."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from propc.errors import PropcTypeError, PropcValueError, message
from propc.frontend import active_tracer
from propc.frontend.scan_state import advanced, kind_of
from propc.frontend.scans import trace
from propc.frontend.user_source import user_source

S = TypeVar("S")


def scan(step: Callable[[S], S], init: S, length: int) -> S:
    """Apply ``step`` to a state `length` times; returns the last state.

    The same as ``for t in range(length): state = step(state)``, in values, random numbers and gradients. Inside a
    compiled function a long scan is traced for a few steps only: steps that are alike become one node of the graph
    that runs as often as needed, so that neither tracing nor compiling grows with `length`. Sites, nodes and costs that
    the step names ``x`` are ``x0``, ``x1``, …, by the step's index; those of the steps that are one node share a name
    such as ``x3..x997``.

    Args:
        step: from a state to the next one. All that it takes along goes through the state; what it closes over, such
            as parameters and modules, stays as it is.
        init: the first state: a tensor, or tensors in tuples, lists, dicts (any pytree). What is no tensor must not
            change.
        length: how often. It is static: another length compiles another graph.

    Returns:
        The state after the last step, of the structure of `init`.

    Raises:
        PropcTypeError: a length that is no integer; a state that is no tensor and no pytree of tensors.
        PropcValueError: a negative length, or a step that changes the state's structure, a shape, a dtype, a device
            or something that is no tensor. Inside a compiled function also: steps that never become alike, or a long
            scan inside the step of another.
    """
    if not isinstance(length, int) or isinstance(length, bool):
        raise _type_error(f"its length must be an integer; got {kind_of(length)}", "Such as length=100.")
    if length < 0:
        raise PropcValueError(message(f"its length is {length}", "Give 0 or more.", at="a scan", where=user_source()))
    if not callable(step):
        raise _type_error(
            f"its step must be a function of the state; got {kind_of(step)}", "Write scan(step, init, 10)."
        )
    tracer = active_tracer()
    if tracer is not None:
        result: S = trace(tracer, step, init, length)
        return result
    state = init
    for index in range(length):
        state = advanced(step, state, index)
    return state


def _type_error(finding: str, fix: str) -> PropcTypeError:
    return PropcTypeError(message(finding, fix, at="a scan", where=user_source()))
