"""Interleaved timing of several callables in one process, as ratios to a reference.

Each round runs every candidate once, in an order that rotates from round to round, so
that drift of the machine (frequency, other processes) falls on all of them alike. A
ratio is the median over rounds of candidate / reference *within* a round. One thread;
the garbage collector is off while the clock runs and runs between the rounds.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import re
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate

__all__ = [
    "Bound",
    "Clock",
    "Ratio",
    "check",
    "interleave",
    "keep_memory",
    "markdown",
    "options",
    "print_table",
    "ratio_table",
    "ratios",
    "replace_section",
    "show",
]

Step = Callable[[], object]
Table = tuple[Sequence[str], Sequence[Sequence[str]]]  # header, rows


def keep_memory() -> None:
    """Let the C library keep freed memory, where it is glibc's.

    Whether it gives large blocks back to the system, to fetch them again in the next step, hangs on the order in
    which a program frees them; where blocks are tens of megabytes that luck doubles a step.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another library, or Windows
        return
    for option in (-1, -3):  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD
        mallopt(option, 2**30)


@dataclass(frozen=True)
class Clock:
    """How a stretch of work is timed: a clock in nanoseconds and a barrier before each reading."""

    now: Callable[[], int] = time.perf_counter_ns
    barrier: Callable[[], None] = lambda: None

    @staticmethod
    def named(name: str, device: torch.device) -> Clock:
        """``"wall"``, or ``"cpu"``: CPU time, blind to what other processes take."""
        if device.type == "cuda":
            return Clock(time.perf_counter_ns, lambda: torch.cuda.synchronize(device))
        return Clock(time.process_time_ns if name == "cpu" else time.perf_counter_ns)


@dataclass(frozen=True)
class Ratio:
    """A candidate's cost over the reference's: median and quartiles over the rounds."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        if self.low == self.high:
            return f"{self.median:.2f}"
        return f"{self.median:.2f} [{self.low:.2f}, {self.high:.2f}]"


@dataclass(frozen=True)
class Bound:
    """A measured figure and what it should reach; `slack` times the target fails the check."""

    name: str
    value: float
    target: float
    slack: float = 2.0

    @property
    def met(self) -> bool:
        """Whether the target is reached."""
        return self.value <= self.target

    @property
    def failed(self) -> bool:
        """Whether the figure is beyond the loose bound, or no number."""
        return not self.value <= self.target * self.slack

    def __str__(self) -> str:
        loose = self.target * self.slack
        return f"{self.name}: {self.value:.3g} (target {self.target:g}, fails above {loose:.3g})"


def _timed(step: Step, repeats: int, clock: Clock) -> float:
    clock.barrier()
    start = clock.now()
    for _ in range(repeats):
        step()
    clock.barrier()
    return (clock.now() - start) / repeats


def interleave(
    steps: Mapping[str, Step],
    *,
    rounds: int,
    warmup: int = 5,
    least_ns: float = 2e6,
    clock: Clock | None = None,
) -> dict[str, list[float]]:
    """Nanoseconds per step of each candidate, one figure a round.

    Args:
        steps: candidates by name.
        rounds: figures per candidate.
        warmup: steps of each candidate before the clock starts.
        least_ns: a candidate's stretch in a round is repeated to last at least this long,
            with the same number of repeats for every candidate.
        clock: wall time by default.
    """
    clock = clock or Clock()
    names = list(steps)
    for _ in range(warmup):
        for name in names:
            steps[name]()
    quickest = min(_timed(steps[name], 1, clock) for name in names)
    repeats = max(1, round(least_ns / max(quickest, 1.0)))
    figures: dict[str, list[float]] = {name: [] for name in names}
    was_enabled = gc.isenabled()
    try:
        for index in range(rounds):
            gc.collect()
            gc.disable()
            turn = index % len(names)
            for name in names[turn:] + names[:turn]:
                figures[name].append(_timed(steps[name], repeats, clock))
            gc.enable()
    finally:
        (gc.enable if was_enabled else gc.disable)()
    return figures


def ratios(figures: Mapping[str, Sequence[float]], reference: str) -> dict[str, Ratio]:
    """Ratio of every candidate to the one called `reference`, paired by round."""
    base = figures[reference]
    return {name: _ratio(values, base) for name, values in figures.items()}


def _ratio(values: Sequence[float], base: Sequence[float]) -> Ratio:
    paired = [value / reference for value, reference in zip(values, base, strict=True)]
    if len(paired) < 2:
        return Ratio(paired[0], paired[0], paired[0])
    low, median, high = statistics.quantiles(paired, n=4, method="inclusive")
    return Ratio(median, low, high)


def ratio_table(head: str, columns: Mapping[Any, Mapping[str, Ratio]]) -> tuple[list[str], list[list[str]]]:
    """Header and rows: a column for each case, a row for each candidate that some case has."""
    names = list(dict.fromkeys(name for found in columns.values() for name in found))
    rows = [[name, *(str(found.get(name, "–")) for found in columns.values())] for name in names]
    return [head, *map(str, columns)], rows


def print_table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table for people."""
    print(f"{title}\n\n{_tabulate(header, rows, 'simple')}\n")


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The same table in Markdown."""
    return _tabulate(header, rows, "pipe")


def _tabulate(header: Sequence[str], rows: Sequence[Sequence[str]], layout: str) -> str:
    align = ["left", *["right"] * (len(header) - 1)]
    return tabulate(rows, headers=header, tablefmt=layout, colalign=align, disable_numparse=True)


def show(tables: Sequence[Table], page: Path | None, marker: str) -> None:
    """Print tables, and write them into the section of a page, where there is one."""
    for header, rows in tables:
        print_table(f"torch {torch.__version__}, one thread", header, rows)
    if page:
        replace_section(page, marker, "\n\n".join(markdown(header, rows) for header, rows in tables))


def replace_section(path: Path, marker: str, text: str) -> None:
    """Put `text` between ``<!-- marker -->`` and ``<!-- /marker -->`` of the file at `path`."""
    page = path.read_text()
    pattern = re.compile(rf"(<!-- {marker} -->\n).*?(<!-- /{marker} -->)", re.DOTALL)
    if not pattern.search(page):
        raise SystemExit(f"{path} has no section between <!-- {marker} --> and <!-- /{marker} -->")
    path.write_text(pattern.sub(lambda match: f"{match[1]}\n{text}\n\n{match[2]}", page, count=1))


def check(bounds: Sequence[Bound], *, strict: bool) -> int:
    """Report each bound; with `strict`, 1 where a figure is beyond its slack."""
    for bound in bounds:
        verdict = "FAIL" if bound.failed else "ok" if bound.met else "over target"
        print(f"{verdict:>11}  {bound}")
    return int(strict and any(bound.failed for bound in bounds))


def options(description: str) -> argparse.ArgumentParser:
    """The options that every benchmark shares."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--small", action="store_true", help="a quick version")
    parser.add_argument("--check", action="store_true", help="exit 1 where a figure is beyond its loose bound")
    parser.add_argument("--out", type=Path, metavar="PAGE.md", help="write the tables into this page")
    return parser
