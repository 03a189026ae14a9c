"""The same benchmarks in two checkouts, in turns: what a change has made slower.

    git worktree add ../before COMMIT
    python benchmarks/before_after.py ../before [--benchmarks step_time compile_time] [--runs 3] [--small]

Each run is a process of its own, and its figures are the benchmark's: ratios to plain PyTorch, or bytes over bytes,
within that process. So two checkouts can be compared although they cannot be imported together. A cell is the median
over the runs; what differs by more than `--show` is listed, or all with ``--show 0``.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import timing

HERE = Path(__file__).parents[1]
Figures = dict[str, float]  # "row, column" -> figure


def run(checkout: Path, name: str, small: bool) -> Figures:
    """The figures of one run of a benchmark in a checkout."""
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder, "page.md")
        page.write_text(f"<!-- {name} -->\n<!-- /{name} -->\n")
        command = [sys.executable, str(checkout / "benchmarks" / f"{name}.py"), "--out", str(page)]
        paths = os.environ | {"PYTHONPATH": str(checkout)}
        subprocess.run([*command, *(["--small"] if small else [])], env=paths, check=True, stdout=subprocess.DEVNULL)
        return figures(page.read_text())


def figures(page: str) -> Figures:
    """The numbers of the Markdown tables of a page, by row and column; of ``1.02 [0.98, 1.10]`` the first."""
    found: Figures = {}
    head: list[str] = []
    for line in page.splitlines():
        if not line.startswith("|"):
            head = []
            continue
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if not head:
            head = cells
            continue
        numbers = ((column, re.match(r"\d+(\.\d+)?", cell)) for column, cell in zip(head[1:], cells[1:]))
        found |= {f"{head[0]}: {cells[0]}, {column}": float(number[0]) for column, number in numbers if number}
    return found


def medians(runs: list[Figures]) -> Figures:
    """The median of each figure that every run has."""
    return {key: statistics.median(each[key] for each in runs) for key in runs[0] if all(key in each for each in runs)}


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description="Benchmarks in two checkouts, in turns.")
    parser.add_argument("before", type=Path, help="the other checkout")
    parser.add_argument("--benchmarks", nargs="+", default=["step_time"])
    parser.add_argument("--runs", type=int, default=3, help="of each benchmark in each checkout")
    parser.add_argument("--show", type=float, default=0.05, help="list figures that differ by this share or more")
    parser.add_argument("--small", action="store_true", help="quick versions")
    options = parser.parse_args()
    rows = []
    for name in options.benchmarks:
        both: tuple[list[Figures], list[Figures]] = ([], [])
        for _ in range(options.runs):
            for checkout, known in zip((options.before.resolve(), HERE), both):
                known.append(run(checkout, name, options.small))
        before, after = map(medians, both)
        for key in before.keys() & after.keys():
            change = after[key] / before[key] - 1 if before[key] else 0.0
            if abs(change) >= options.show:
                rows.append((key, f"{before[key]:.3g}", f"{after[key]:.3g}", f"{change:+.0%}"))
        print(f"{name}: {len(before.keys() & after.keys())} figures, medians of {options.runs} runs", flush=True)
    timing.print_table("changed", ("figure", "before", "after", "change"), sorted(rows))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
