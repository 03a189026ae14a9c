"""Options that can be changed after the fact: `thing.configure(option=value)`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar

from propc.errors import PropcValueError, message, nearest

C = TypeVar("C", bound="Configurable")


class Configurable:
    """Something with options, and perhaps with parts that have options of their own."""

    def named_parts(self) -> Mapping[str, Any]:
        """The parts that can be configured from here, by name."""
        return {}

    def with_parts(self: C, **parts: Any) -> C:
        """The same with other parts; None leaves one out."""
        raise NotImplementedError

    def configure(self: C, **options: Any) -> C:
        """The same with other options.

        An option is a field of this, the name of a part (a new part, None to leave it out, or a mapping of
        the part's own options), or an option of exactly one of the parts.

        Raises:
            PropcValueError: an unknown option (the nearest is named), or one that several parts have.
        """
        made = self
        for option, value in options.items():
            made = _configured(made, option, value)
        return made


def printed(cls: type) -> str:
    """The name of a class as it is printed: ``by-family`` for ``ByFamily``."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "-", cls.__name__).lower()


def options_of(thing: Any) -> tuple[str, ...]:
    """The names of a thing's own options, its parts included."""
    own = tuple(f.name for f in fields(thing) if f.init) if is_dataclass(thing) else ()
    inside = thing.named_parts() if isinstance(thing, Configurable) else {}
    return (*own, *(name for name in inside if name not in own))


def _configured(thing: C, option: str, value: Any) -> C:
    parts = thing.named_parts()
    if option in parts:
        return thing.with_parts(**{option: _part(parts[option], value)})
    if is_dataclass(thing) and option in (f.name for f in fields(thing)):
        return replace(thing, **{option: value})
    owners = [name for name, part in parts.items() if option in _all_options(part)]
    if len(owners) == 1:
        (owner,) = owners
        return thing.with_parts(**{owner: parts[owner].configure(**{option: value})})
    if owners:
        raise PropcValueError(
            message(
                f"the option {option!r} belongs to several parts: {', '.join(map(repr, owners))}",
                f"Say which: configure({owners[0]}={{{option!r}: ...}}).",
                at=repr(_name(thing)),
            )
        )
    known = nearest(option, _all_options(thing))
    raise PropcValueError(message(f"unknown option {option!r} of {_name(thing)!r}", known))


def _part(part: Any, value: Any) -> Any:
    return part.configure(**value) if isinstance(value, Mapping) and isinstance(part, Configurable) else value


def _all_options(thing: Any) -> list[str]:
    return list(_walk(thing))


def _walk(thing: Any) -> Iterator[str]:
    yield from options_of(thing)
    if isinstance(thing, Configurable):
        for part in thing.named_parts().values():
            yield from _walk(part)


def _name(thing: Any) -> str:
    return str(getattr(thing, "name", type(thing).__name__))


def one_of(option: str, value: Any, known: tuple[Any, ...]) -> None:
    """Check an option's value.

    Raises:
        PropcValueError: naming the known values and the nearest.
    """
    if value not in known:
        raise PropcValueError(message(f"option {option}={value!r} is unknown", nearest(str(value), map(str, known))))
