"""Checks of what enters a table of names: estimators, propagators and passes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from propc.errors import PropcTypeError, PropcValueError, message


def check_name(name: object, kind: str, decorator: str) -> None:
    """Check a name before it is given to something.

    Args:
        name: the name.
        kind: of what, for the message.
        decorator: how the user writes the decorator.

    Raises:
        PropcTypeError: it is no non-empty string, such as the class itself where the parentheses were left out.
    """
    if not isinstance(name, str) or not name:
        raise PropcTypeError(
            message(f"the name of {kind} must be a non-empty string; got {name!r}", f"Write @{decorator}('name').")
        )


def check_entry(table: Mapping[str, Any], name: str, made: Any, kind: str, base: type, classes: bool = True) -> None:
    """Check what is to be known by a name.

    Args:
        table: what is known.
        name: the name.
        made: the class, or, unless `classes`, a function that makes one.
        kind: what it must be, for the message.
        base: the class it must descend from.
        classes: whether only classes may be.

    Raises:
        PropcTypeError: it is of the wrong kind.
        PropcValueError: the name is taken by another, or the class has another name already.
    """
    if not (issubclass(made, base) if isinstance(made, type) else callable(made) and not classes):
        raise PropcTypeError(
            message(f"{name!r} is to be the name of {kind}; got {made!r}", f"Derive the class from {base.__name__}.")
        )
    if name in table and not same_definition(table[name], made):
        raise PropcValueError(message(f"the {kind.split()[-1]} name {name!r} is taken", "Choose another."))
    other = next((known for known, entry in table.items() if entry is made and known != name), None)
    if other is not None:
        raise PropcValueError(
            message(f"{made.__qualname__} is known as {other!r} already", "Register a subclass of it.")
        )


def same_definition(known: Any, made: Any) -> bool:
    """Whether two have one module and name: what is defined again, as in a notebook, replaces itself."""
    one, other = ((getattr(x, "__module__", ""), getattr(x, "__qualname__", "")) for x in (known, made))
    return one == other
