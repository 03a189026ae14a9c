"""Time to trace the chaotic RNN and run every pass, by horizon.

    python benchmarks/compile_time.py [--small] [--check] [--out docs/benchmarks.md]

Each figure is the median of `compiled.graph(...)` on freshly compiled objects, in
milliseconds per site; growth is the time per site of the longest horizon over that of the
one before. Milliseconds depend on the machine; beside them stands the time over that of
the program alone on torch's fake tensors, on which tracing has to run it. One thread, CPU time.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import models
import timing
import torch
from torch.distributions import Distribution

import propc
from propc.util.torch_private import FakeTensorMode

BATCH = 100
SITE_TARGET = 2.0  # milliseconds a site
SITE_SLACK = 10.0  # a machine may be slow
GROWTH_TARGET = 1.25  # time per site at the longest horizon over the one before
FULL = (10, 100, 1000)
SMALL = (10, 100)


@dataclass(frozen=True)
class Program:
    """A program to compile and the estimator to compile it with; `target` bounds time over that on fake tensors."""

    name: str
    fn: Callable[..., torch.Tensor]
    estimator: Callable[[], object]
    target: float = 2.0


PROGRAMS = (
    Program("rp", models.rollout, lambda: "rp"),
    Program("lr", models.rollout, lambda: "lr"),
    Program("tp", models.rollout, lambda: "tp"),
    Program("tp[beta]", models.rollout, lambda: propc.estimator("tp", target="beta"), 3.0),
    Program("lr, a reward per step", models.rewarded_rollout, lambda: "lr", 3.5),
    Program("tp, a reward per step", models.rewarded_rollout, lambda: "tp", 3.5),
)


@dataclass(frozen=True)
class Result:
    """Milliseconds per site of one program, by horizon, and on fake tensors alone."""

    program: Program
    per_site: dict[int, float]
    fake: dict[int, float]

    @property
    def name(self) -> str:
        """That of the program."""
        return self.program.name

    @property
    def over_fake(self) -> float:
        """Time over that on fake tensors, at the longest horizon."""
        longest = max(self.per_site)
        return self.per_site[longest] / self.fake[longest]

    @property
    def growth(self) -> float:
        """Per-site time of the longest horizon over that of the one before: 1 is linear."""
        *_, before, longest = self.per_site.values()
        return longest / before


def build(program: Program, given: models.Problem) -> None:
    """Compile from nothing, up to the graph after all passes."""
    compiled = propc.compile(program.fn, estimator=program.estimator())
    compiled.graph(given.beta, given.x0, given.W, horizon=given.horizon)


def on_fake_tensors(fn: Callable[..., torch.Tensor], given: models.Problem) -> None:
    """Run a program on tensors without values."""
    mode = FakeTensorMode()
    beta, x0, W = (mode.from_tensor(tensor) for tensor in (given.beta, given.x0, given.W))
    with mode:
        fn(beta, x0, W, given.horizon)


def measure(horizons: Sequence[int], repeats: int) -> list[Result]:
    """Every program at every horizon; programs interleaved."""
    fakes = {program.fn: f"{program.fn.__name__} on fake tensors" for program in PROGRAMS}
    medians: dict[str, dict[int, float]] = {name: {} for name in (*(p.name for p in PROGRAMS), *fakes.values())}
    for horizon in horizons:
        given = models.problem(BATCH, 2, horizon)
        steps = {program.name: partial(build, program, given) for program in PROGRAMS}
        steps.update({name: partial(on_fake_tensors, fn, given) for fn, name in fakes.items()})
        rounds = max(3, repeats * 100 // horizon) if horizon > 100 else repeats
        clock = timing.Clock.named("cpu", torch.device("cpu"))
        figures = timing.interleave(steps, rounds=rounds, warmup=1 if horizon <= 100 else 0, clock=clock)
        for name, values in figures.items():
            medians[name][horizon] = statistics.median(values) / horizon / 1e6
    return [Result(program, medians[program.name], medians[fakes[program.fn]]) for program in PROGRAMS]


def table(results: Sequence[Result]) -> tuple[list[str], list[list[str]]]:
    """Header and rows."""
    horizons = list(results[0].per_site)
    header = ["ms per site", *(f"H={horizon}" for horizon in horizons), "growth", "over fake tensors"]
    rows = [
        [r.name, *(f"{r.per_site[horizon]:.2f}" for horizon in horizons), f"{r.growth:.2f}", f"{r.over_fake:.2f}"]
        for r in results
    ]
    return header, rows


def bounds(results: Sequence[Result]) -> list[timing.Bound]:
    """Time per site at the longest horizon, over that on fake tensors, and its growth."""
    longest = max(results[0].per_site)
    return [
        bound
        for r in results
        for bound in (
            timing.Bound(f"{r.name}: ms per site at H={longest}", r.per_site[longest], SITE_TARGET, SITE_SLACK),
            timing.Bound(f"{r.name}: over fake tensors at H={longest}", r.over_fake, r.program.target),
            timing.Bound(f"{r.name}: growth up to H={longest}", r.growth, GROWTH_TARGET),
        )
    ]


def run(arguments: argparse.Namespace) -> int:
    """Measure, print, write the page where asked; the exit status."""
    torch.set_num_threads(1)
    Distribution.set_default_validate_args(False)  # which fake tensors cannot do, and propc does by itself
    results = measure(SMALL if arguments.small else FULL, repeats=3 if arguments.small else 11)
    header, rows = table(results)
    timing.print_table(f"trace and passes, torch {torch.__version__}, one thread", header, rows)
    if arguments.out:
        timing.replace_section(arguments.out, "compile_time", timing.markdown(header, rows))
    return timing.check(bounds(results), strict=arguments.check)


def main() -> int:
    """The command line."""
    return run(timing.options("Time of tracing and of all passes, by horizon.").parse_args())


if __name__ == "__main__":
    raise SystemExit(main())
