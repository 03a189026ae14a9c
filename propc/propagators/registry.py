"""The table of propagators by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar

from propc.errors import PropcError, PropcTypeError, PropcValueError, message, nearest
from propc.ir.messages import Field
from propc.propagators.propagator import Propagator
from propc.util.name_table import check_entry, check_name

P = TypeVar("P", bound=Callable[..., Propagator])
_TABLE: dict[str, Callable[..., Propagator]] = {}


def register_propagator(name: str) -> Callable[[P], P]:
    """Decorator of a propagator class, or of a function that makes one: known by `name` in ``propagator=``.

    Raises:
        PropcTypeError: a name that is no string; neither a propagator class nor a function.
        PropcValueError: the name is taken by another.
    """
    check_name(name, "a propagator", "propc.register_propagator")

    def register(make: P) -> P:
        check_entry(_TABLE, name, make, "a propagator", Propagator, classes=False)
        _TABLE[name] = make
        if isinstance(make, type):
            make.name = name  # type: ignore[attr-defined]
        return make

    return register


def known_propagators() -> tuple[str, ...]:
    """The registered names, sorted."""
    return tuple(sorted(_TABLE))


def propagator(name: str, **options: Any) -> Propagator:
    """A propagator by name with options, such as ``propagator("clip", limit=1.0)``.

    Raises:
        PropcValueError: unknown name or option; the message lists the known ones and the nearest.
    """
    if name not in _TABLE:
        raise PropcValueError(message(f"unknown propagator {name!r}", nearest(str(name), _TABLE)))
    make = _TABLE[name]
    known = [f.name for f in fields(make) if f.init] if is_dataclass(make) else None
    for option in options:
        if known is not None and option not in known:
            raise PropcValueError(message(f"unknown option {option!r} of propagator {name!r}", nearest(option, known)))
    try:
        return make(**options)
    except TypeError as error:
        raise PropcValueError(message(f"propagator {name!r} cannot be made with these options: {error}")) from error


def at_node(choice: Any, kind: str, name: str | None, where: object = None) -> Propagator:
    """A propagator for a node or a cost.

    Raises:
        PropcTypeError: no propagator, or one that only sites can have.
        PropcValueError: an unknown name.
    """
    place = f"{kind} {name!r}" if name else ""
    try:
        found = find(choice)
    except PropcError as error:
        raise type(error)(message(str(error).rstrip("."), at=place, where=where)) from None
    if getattr(found, "draws", False):
        raise PropcTypeError(
            message(
                f"the propagator {found.name!r} draws from a distribution, which only sites have",
                "Give it to propc.sample(..., estimator=).",
                at=place,
                where=where,
            )
        )
    return found


def find(choice: Any) -> Propagator:
    """A propagator from an object, a class or a name.

    Raises:
        PropcTypeError: anything else; a propagator that declares what are no fields.
        PropcValueError: an unknown name.
    """
    if isinstance(choice, str):
        choice = propagator(choice)
    elif isinstance(choice, type) and issubclass(choice, Propagator):
        choice = choice()
    if isinstance(choice, Propagator):
        _check_fields(choice)
        return choice
    raise PropcTypeError(
        message(f"a propagator is a Propagator or the name of one; got {choice!r}", f"Known: {', '.join(_TABLE)}.")
    )


def _check_fields(rule: Propagator) -> None:
    for name in ("sends", "keeps"):
        fields = getattr(rule, name)
        if not isinstance(fields, (tuple, list)) or not all(isinstance(field, Field) for field in fields):
            raise PropcTypeError(
                message(
                    f"the propagator {type(rule).__qualname__} has {name} = {fields!r}, which is no tuple of fields",
                    f"Write {name} = (propc.Field('error'),).",
                )
            )
