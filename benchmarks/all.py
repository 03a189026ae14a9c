"""All benchmarks, each in a process of its own.

    python benchmarks/all.py [--small] [--check] [--out docs/benchmarks.md]

On a machine with a CUDA device the one for GPUs is among them. The exit status is 1 where a benchmark's was not 0.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import timing
import torch

BENCHMARKS = (
    "step_time",
    "by_backend",
    "grid",
    "variance_time",
    "shaping",
    "discrete",
    "peers",
    "compile_time",
    "compile_cold",
    "checks",
    "bookkeeping",
    "horizon",
    "targets",
)
ON_A_GPU = ("gpu",)


def run(name: str, options: list[str]) -> bool:
    """Run one; whether it succeeded."""
    print(f"==== {name}", flush=True)
    start = time.perf_counter()
    done = subprocess.run([sys.executable, str(Path(__file__).with_name(f"{name}.py")), *options])
    print(f"==== {name}: {time.perf_counter() - start:.0f} s\n", flush=True)
    return done.returncode == 0


def main() -> int:
    """The command line."""
    arguments = timing.options("All benchmarks, one after another.").parse_args()
    options = [f"--{name}" for name in ("small", "check") if getattr(arguments, name)]
    if arguments.out:
        options += ["--out", str(arguments.out)]
    names = [*BENCHMARKS, *(ON_A_GPU if torch.cuda.is_available() else ())]
    failed = [name for name in names if not run(name, options)]
    if failed:
        print(f"Failed: {', '.join(failed)}")
    return int(bool(failed))


if __name__ == "__main__":
    raise SystemExit(main())
