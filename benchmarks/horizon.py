"""Memory and time of one training step on the chaotic RNN against its horizon, with and without `Checkpoint`.

    python benchmarks/horizon.py [--small] [--check] [--out docs/benchmarks.md]

As `step_time.py`: memory is the peak of what the tensor allocator holds beyond what it held before the step, and a
ratio of times is taken within a round.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import memory
import models
import timing
import torch

import propc

BATCH, DIM = 1000, 2
FULL = 25, 100, 400, 1600
SMALL = 25, 100, 400
ROOT = 2.0  # growth of memory where the horizon is four times as long
TIME = 1.5  # with blocks over without, at the longest horizon
WITH, WITHOUT = "with", "without"


@dataclass(frozen=True)
class Result:
    """What was measured of one estimator at one horizon: bytes with and without, and the ratio of times."""

    estimator: str
    horizon: int
    blocks: int
    held: dict[str, int]
    time: timing.Ratio


def measure(estimator: str, horizon: int, clock: timing.Clock) -> Result:
    """A step with and without blocks."""
    given = models.problem(BATCH, DIM, horizon)
    passes = {WITHOUT: [], WITH: [propc.passes.Checkpoint()]}
    compiled = {name: propc.compile(models.rollout, estimator=estimator, passes=some) for name, some in passes.items()}
    steps = {name: models.step(fn, given) for name, fn in compiled.items()}
    rounds = max(3, 2000 // horizon)
    times = timing.ratios(timing.interleave(steps, rounds=min(rounds, 41), warmup=2, clock=clock), WITHOUT)
    schedule = compiled[WITH].graph(given.beta, given.x0, given.W, horizon).schedule
    held = {name: memory.peak_bytes(step, torch.device("cpu")) for name, step in steps.items()}
    return Result(estimator, horizon, len(schedule.blocks) + 1, held, times[WITH])


def table(results: Sequence[Result]) -> tuple[list[str], list[list[str]]]:
    """Header and rows."""
    header = ["estimator", "H", "MB without", "MB with", "without / with", "blocks", "time with / without"]
    rows = []
    for r in results:
        megabytes = [f"{r.held[name] / 1e6:.2f}" for name in (WITHOUT, WITH)]
        saved = f"{r.held[WITHOUT] / r.held[WITH]:.1f}"
        rows.append([r.estimator, str(r.horizon), *megabytes, saved, str(r.blocks), str(r.time)])
    return header, rows


def bounds(results: Sequence[Result]) -> list[timing.Bound]:
    """Memory grows with the root of the horizon; the price is less than one more forward pass."""
    found = []
    for shorter, longer in itertools.pairwise(results):
        if shorter.estimator == longer.estimator and longer.horizon >= 400:
            name = f"{longer.estimator}: memory at H={longer.horizon} / at H={shorter.horizon}"
            found.append(timing.Bound(name, longer.held[WITH] / shorter.held[WITH], ROOT, slack=1.3))
    for last in (r for r in results if r.horizon == max(each.horizon for each in results)):
        name = f"{last.estimator}: time at H={last.horizon}, with blocks / without"
        found.append(timing.Bound(name, last.time.median, TIME, slack=1.5))
    return found


def main() -> int:
    """The command line."""
    arguments = timing.options("Memory and time of a step against the horizon.").parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    clock = timing.Clock.named("cpu", torch.device("cpu"))
    estimators = ("tp",) if arguments.small else ("rp", "tp")
    results = [measure(e, h, clock) for e in estimators for h in (SMALL if arguments.small else FULL)]
    header, rows = table(results)
    title = f"one step, B={BATCH} D={DIM}, torch {torch.__version__}, cpu, one thread"
    timing.print_table(title, header, rows)
    if arguments.out:
        timing.replace_section(arguments.out, "horizon", timing.markdown(header, rows))
    return timing.check(bounds(results), strict=arguments.check)


if __name__ == "__main__":
    raise SystemExit(main())
