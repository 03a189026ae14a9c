"""Seconds, bytes and other numbers for people."""

from __future__ import annotations


def milliseconds(seconds: float) -> str:
    """In milliseconds, three digits."""
    value = 1e3 * seconds
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}" if value >= 0.001 or not value else "<0.001"


def size(count: int) -> str:
    """Bytes in the unit that suits them."""
    value = float(count)
    for unit in ("B", "KiB", "MiB"):
        if abs(value) < 1024:
            return f"{value:.3g} {unit}"
        value /= 1024
    return f"{value:.3g} GiB"


def percent(share: float) -> str:
    """A share of the whole."""
    return f"{100 * share:.1f}"


def two_digits(value: float) -> str:
    """Two digits, or the whole number."""
    return f"{value:.0f}" if 100 <= value < 1e6 else f"{value:.2g}"
