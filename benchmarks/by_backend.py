"""Time and memory of one training step on the chaotic RNN, by backend, over plain PyTorch at its fastest.

    python benchmarks/by_backend.py [--small] [--check] [--out docs/benchmarks.md]

The reference draws with `mu + sigma * torch.randn_like(mu)`, without distribution objects. `torch.compile` of it is
measured too: of one step, called in a loop, and of the whole rollout where it is short. One thread.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import candidates
import memory
import models
import timing
import torch
from step_time import Case

REFERENCE = "hand rp"
BACKENDS = ("eager", "inductor")
LIGHT = {"inductor rp": 0.8, "inductor lr": 0.8, "inductor tp": 1.0, "inductor tp[beta]": 1.4}
HEAVY = {"inductor tp": 1.15, "inductor tp[beta]": 1.3}
FULL = (
    Case(1000, 2, 10, 101, LIGHT),
    Case(1000, 2, 100, 31, LIGHT),
    Case(1000, 2, 1000, 7, LIGHT),
    Case(1000, 500, 10, 15, HEAVY),
)
SMALL = (Case(1000, 2, 10, 31, LIGHT),)


@dataclass(frozen=True)
class Result:
    """Time and peak memory of every candidate, over the reference."""

    case: Case
    time: dict[str, timing.Ratio]
    memory: dict[str, timing.Ratio]


def all_steps(given: models.Problem, backends: Sequence[str] = BACKENDS) -> dict[str, Callable[[], object]]:
    """Steps of all candidates by name."""
    rollouts = {**candidates.by_hand(), **candidates.by_compiler(given.horizon)}
    for backend in backends:
        rollouts |= candidates.by_propc(backend)
    return {name: models.step(fn, given) for name, fn in rollouts.items()}


def measure(case: Case, clock: timing.Clock) -> Result:
    """All candidates on one case."""
    given = models.problem(case.batch, case.dim, case.horizon)
    steps = all_steps(given)
    time = timing.ratios(timing.interleave(steps, rounds=case.rounds, warmup=3, clock=clock), REFERENCE)
    peaks = {name: [memory.peak_bytes(step, given.x0.device)] for name, step in steps.items()}
    return Result(case, time, timing.ratios(peaks, REFERENCE))


def bounds(results: Sequence[Result]) -> list[timing.Bound]:
    """What `inductor` should reach."""
    return [
        timing.Bound(f"{result.case}: time of {name} / {REFERENCE}", result.time[name].median, target)
        for result in results
        for name, target in result.case.targets.items()
    ]


def main() -> int:
    """The command line."""
    parser = timing.options("Step time of each backend on the chaotic RNN against plain PyTorch without distributions.")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    clock = timing.Clock.named("cpu", torch.device("cpu"))
    results = [measure(case, clock) for case in (SMALL if arguments.small else FULL)]
    times = timing.ratio_table(f"step time / {REFERENCE}", {str(r.case): r.time for r in results})
    peaks = timing.ratio_table(f"peak memory / {REFERENCE}", {str(r.case): r.memory for r in results})
    timing.show([times, peaks], arguments.out, "by_backend")
    return timing.check(bounds(results), strict=arguments.check)


if __name__ == "__main__":
    raise SystemExit(main())
