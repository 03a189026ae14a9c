"""Seconds of things done one after another."""

from __future__ import annotations

import time
from collections.abc import Iterable

Seconds = tuple[tuple[str, float], ...]


class Laps:
    """A stopwatch: each lap lasts from the end of the one before it."""

    def __init__(self) -> None:
        self._found: list[tuple[str, float]] = []
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        """End a lap."""
        now = time.perf_counter()
        self._found.append((name, now - self._last))
        self._last = now

    def parts(self, parts: Iterable[tuple[str, float]]) -> None:
        """End a lap whose parts were timed already."""
        self._found.extend(parts)
        self._last = time.perf_counter()

    @property
    def seconds(self) -> Seconds:
        """By name, in order."""
        return tuple(self._found)
