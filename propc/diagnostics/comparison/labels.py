"""What people call an estimator."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from types import FunctionType
from typing import Any

from propc.errors import PropcTypeError, message
from propc.estimators import Estimator
from propc.propagators.propagator import Propagator


def label(choice: Any) -> str:
    """What people call an estimator: its name with the options that are set, its sites, or its function's name."""
    if isinstance(choice, Mapping):
        return ", ".join(f"{pattern}: {label(each)}" for pattern, each in choice.items())
    if isinstance(choice, (Estimator, Propagator)):
        set_options = [
            f"{k}={label(v) if isinstance(v, (Estimator, FunctionType)) else repr(v)}" for k, v in _options(choice)
        ]
        return f"{choice.name}({', '.join(set_options)})" if set_options else choice.name
    if isinstance(choice, type):
        return str(getattr(choice, "name", choice.__name__))
    return str(getattr(choice, "__name__", choice))


def labelled(estimators: Any) -> dict[str, Any]:
    """Estimators by label; labels that come twice are numbered."""
    if isinstance(estimators, Mapping):
        return {str(name): choice for name, choice in estimators.items()}
    if isinstance(estimators, (str, Estimator)) or not isinstance(estimators, Iterable):
        raise PropcTypeError(
            message(f"estimators= takes several; got {estimators!r}", "Give a list, or a mapping from labels.")
        )
    found: dict[str, Any] = {}
    for choice in estimators:
        name, number = label(choice), 1
        while name in found:
            number += 1
            name = f"{label(choice)} ({number})"
        found[name] = choice
    return found


def _options(choice: Any) -> list[tuple[str, Any]]:
    """The options of an estimator that are not the default."""
    if not is_dataclass(choice):
        return []
    own = [(f.name, getattr(choice, f.name), f.default) for f in fields(choice) if f.init]
    return [(name, value) for name, value, default in own if default is MISSING or value != default]
