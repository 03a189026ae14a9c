"""Time until the compiled chaotic RNN runs at full speed, from empty caches and again from those on disk.

    python benchmarks/compile_cold.py [--small] [--check] [--out docs/benchmarks.md]

Every figure is from a process of its own: seconds of CPU time, the C++ compiler's included, from compiling to the end
of the second step, less those two steps. Tracing and all passes are in it. "cold" has an empty folder for inductor's
files, "warm" finds those of the cold run. A stage is compiled once for any number of steps, so the time hardly grows.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence

import candidates
import models
import timing
import torch

BATCH = 1000
WHOLE, ONE_STEP = "torch.compile rp", "torch.compile rp, a step"
NAMES = (*(f"inductor {name}" for name in candidates.ESTIMATORS), ONE_STEP, WHOLE)
TARGET = 1.5  # cold, the longest horizon over the shortest
FULL, SMALL = (10, 100, 1000), (10, 100)
Seconds = dict[int, list[float]]  # horizon -> cold, then warm


def cpu() -> float:
    """Seconds of CPU time of this process and of those that it waited for."""
    return sum(os.times()[:4])


def here(name: str, horizon: int) -> float:
    """Seconds to compile one candidate in this process."""
    torch.set_num_threads(1)
    start = cpu()
    step = models.step(rollout(name, horizon), models.problem(BATCH, 2, horizon))
    step()
    step()
    ready = cpu()
    step()
    step()
    return 2 * ready - start - cpu()


def rollout(name: str, horizon: int) -> candidates.Rollout:
    """A candidate by name."""
    backend, _, estimator = name.partition(" ")
    if backend == "torch.compile":
        return candidates.by_compiler(horizon)[name]
    return candidates.by_propc(backend, [estimator])[name]


def anew(name: str, horizon: int, runs: int) -> list[float]:
    """Seconds to compile in new processes that share a folder for what inductor writes, empty at first."""
    command = [sys.executable, __file__, "--one", name, str(horizon)]
    with tempfile.TemporaryDirectory() as folder:
        settings = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": folder, "TORCHINDUCTOR_COMPILE_THREADS": "1"}
        return [
            json.loads(subprocess.run(command, env=settings, check=True, capture_output=True, text=True).stdout)
            for _ in range(runs)
        ]


def measure(names: Sequence[str], horizons: Sequence[int], runs: int) -> dict[str, Seconds]:
    """Every candidate at every horizon; `torch.compile` of all steps only where these are few."""
    return {
        name: {h: anew(name, h, runs) for h in horizons if name != WHOLE or h <= candidates.LONGEST_WHOLE}
        for name in names
    }


def table(results: dict[str, Seconds]) -> timing.Table:
    """A row for each candidate: seconds cold and warm, and how the former grow."""
    horizons = list(dict.fromkeys(h for found in results.values() for h in found))
    rows = [
        [
            name,
            *(" · ".join(f"{s:.1f}" for s in found[h]) if h in found else "–" for h in horizons),
            f"{growth(found):.2f}",
        ]
        for name, found in results.items()
    ]
    return ["seconds, cold · warm", *(f"H={h}" for h in horizons), "growth, cold"], rows


def growth(found: Seconds) -> float:
    """Cold, the longest horizon over the shortest."""
    return found[max(found)][0] / found[min(found)][0]


def bounds(results: dict[str, Seconds]) -> list[timing.Bound]:
    """Compiling takes hardly longer for more steps."""
    return [
        timing.Bound(f"{name}: cold, H={max(found)} / H={min(found)}", growth(found), TARGET)
        for name, found in results.items()
        if name.startswith("inductor")
    ]


def main() -> int:
    """The command line."""
    parser = timing.options("Time to compile the chaotic RNN with inductor, by horizon.")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        name, horizon = arguments.one
        print(json.dumps(here(name, int(horizon))))
        return 0
    results = measure(["inductor tp"], SMALL, 1) if arguments.small else measure(NAMES, FULL, 2)
    timing.show([table(results)], arguments.out, "compile_cold")
    return timing.check(bounds(results), strict=arguments.check)


if __name__ == "__main__":
    raise SystemExit(main())
