"""Patterns of names, such as ``x*``. A name such as ``x3..x97`` stands for those of many steps of a scan."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase, translate
from functools import lru_cache
from typing import TypeVar

from propc.errors import PropcValueError, message

R = TypeVar("R")
_RANGE = re.compile(r"(?P<head>.*?)(?P<low>\d+)(?P<tail>(\.\d+)*)\.\.(?P=head)(?P<high>\d+)(?P=tail)")


def matches(name: str, pattern: str) -> bool:
    """Whether a pattern matches a name, in which capitals matter.

    Raises:
        PropcValueError: of the names that it stands for the pattern matches some.
    """
    return name == pattern or (_all_match(name, pattern) if ".." in name else fnmatchcase(name, pattern))


def same_for_all(name: str, choose: Callable[[str], R], what: str) -> R:
    """What `choose` gives for a name, or for all that it stands for.

    Raises:
        PropcValueError: it does not give the same for all.
    """
    names = _names(name)
    first = next(names)
    found = choose(first)
    for other in names:
        if choose(other) != found:
            raise PropcValueError(
                message(
                    f"{what} tells {first!r} from {other!r}, and both are the same step of a long propc.scan, {name!r}",
                    "Choose the same for all steps, or write a Python loop in place of the scan.",
                )
            )
    return found


@lru_cache
def _all_match(name: str, pattern: str) -> bool:
    start = _RANGE.fullmatch(name)
    fixed = re.split(r"[*?\[]", pattern)[0]
    head = start["head"] if start is not None else name
    if start is None or not (head.startswith(fixed) or fixed.startswith(head)):
        return fnmatchcase(name, pattern)
    if pattern == f"{fixed}*" and head.startswith(fixed):
        return True
    fits = re.compile(translate(pattern)).match
    return same_for_all(name, lambda each: fits(each) is not None, f"the pattern {pattern!r}")


def _names(name: str) -> Iterator[str]:
    """The names that one stands for."""
    found = _RANGE.fullmatch(name)
    if found is None:
        yield name
        return
    for index in range(int(found["low"]), int(found["high"]) + 1):
        yield f"{found['head']}{index}{found['tail']}"
