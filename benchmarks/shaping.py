"""Time of one training step with Gaussian shaping on the chaotic RNN, over `lr`.

    python benchmarks/shaping.py [--small] [--check] [--out docs/benchmarks.md]

As `step_time.py`: steps are interleaved in one process, and a ratio is taken within a round.
"""

from __future__ import annotations

from dataclasses import dataclass

import models
import timing
import torch

import propc

REFERENCE = "propc lr"
TARGET = 1.3  # gs over lr


@dataclass(frozen=True)
class Case:
    """One size of the problem, with a Gaussian before the last cost or before one at every step."""

    batch: int
    dim: int
    horizon: int
    rounds: int
    rewards: bool = False

    def __str__(self) -> str:
        return f"B={self.batch} D={self.dim} H={self.horizon}" + (", a reward per step" if self.rewards else "")


FULL = (Case(1000, 2, 10, 301), Case(1000, 2, 100, 101), Case(1000, 2, 100, 41, rewards=True))
SMALL = (Case(1000, 2, 10, 41), Case(1000, 2, 100, 9))


def measure(case: Case, clock: timing.Clock) -> dict[str, timing.Ratio]:
    """Time of every estimator on one case, over `lr`."""
    given = models.problem(case.batch, case.dim, case.horizon)
    fn = models.rewarded_rollout if case.rewards else models.rollout
    steps = {
        f"propc {name}": models.step(propc.compile(fn, estimator=propc.estimator(name)), given)
        for name in ("lr", "gs", "tp", "gs-tp", "rp", "gr")
    }
    return timing.ratios(timing.interleave(steps, rounds=case.rounds, clock=clock), REFERENCE)


def main() -> int:
    """The command line."""
    parser = timing.options("Step time of Gaussian shaping on the chaotic RNN against lr.")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="cpu", help="what is timed")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    clock = timing.Clock.named(arguments.clock, torch.device("cpu"))
    results = {case: measure(case, clock) for case in (SMALL if arguments.small else FULL)}
    table = timing.ratio_table(f"step time / {REFERENCE}", {str(case): found for case, found in results.items()})
    timing.show([table], arguments.out, "shaping")
    bounds = [
        timing.Bound(f"{case}: time of propc gs / {REFERENCE}", found["propc gs"].median, TARGET)
        for case, found in results.items()
        if not case.rewards
    ]
    return timing.check(bounds, strict=arguments.check)


if __name__ == "__main__":
    raise SystemExit(main())
