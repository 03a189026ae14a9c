"""Time and memory of one training step on the chaotic RNN, against plain PyTorch.

    python benchmarks/step_time.py [--small] [--check] [--out docs/benchmarks.md]

A step clears the gradient, calls the rollout and goes backward through the mean of its costs.
Ratios are to idiomatic plain PyTorch, reparameterized, ``Normal(...).rsample()``, in the same
process, interleaved, one thread; `lr` also to a hand-written surrogate loss.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import memory
import models
import timing
import torch
from candidates import ESTIMATORS

import propc

REFERENCE = "plain rp"


@dataclass(frozen=True)
class Case:
    """One size of the problem; `targets` bound time over plain rp, `memory` that of propc tp over propc rp."""

    batch: int
    dim: int
    horizon: int
    rounds: int
    targets: dict[str, float]
    memory: float = 1.3

    def __str__(self) -> str:
        return f"B={self.batch} D={self.dim} H={self.horizon}"


LIGHT = {"propc rp": 1.0, "propc tp": 1.6, "propc tp[beta]": 2.5}
HEAVY = {"propc rp": 1.02, "propc tp": 1.4, "propc tp[beta]": 1.5}
LR_TARGET = 1.0  # propc lr over the hand-written surrogate
# At D = 2 with a constant W, rp keeps two tensors a step, and tp the draw too. Elsewhere more is kept anyway.
LIGHT_MEMORY = 1.5
TRAINED = ("propc rp", "propc tp")  # whose memory is measured with a trained W too

FULL = (
    Case(1000, 2, 10, 301, LIGHT, LIGHT_MEMORY),
    Case(1000, 2, 100, 101, LIGHT, LIGHT_MEMORY),
    Case(1000, 500, 10, 31, HEAVY),
)
SMALL = (Case(1000, 2, 10, 41, LIGHT, LIGHT_MEMORY), Case(1000, 500, 3, 7, HEAVY))


@dataclass(frozen=True)
class Result:
    """What was measured of one case."""

    case: Case
    time: dict[str, timing.Ratio]
    lr_over_hand: timing.Ratio
    memory: dict[str, int]
    trained: dict[str, int]  # the same where W takes a gradient too


def candidates() -> dict[str, Callable[..., torch.Tensor]]:
    """Rollouts by name: those by hand, and propc's under each estimator."""
    weighted = {f"tp, {weights}": propc.estimator("tp", weights=weights) for weights in ("same", "rehearsed")}
    compiled = {
        f"propc {name}": propc.compile(models.rollout, estimator=estimator)
        for name, estimator in {**ESTIMATORS, **weighted}.items()
    }
    return {**models.by_hand(), **compiled}


def measure(case: Case, device: torch.device, clock: timing.Clock) -> Result:
    """Time and memory of every candidate on one case."""
    given, trained = (
        models.problem(case.batch, case.dim, case.horizon, device=device, trained=trained) for trained in (False, True)
    )
    rollouts = candidates()
    steps = {name: models.step(fn, given) for name, fn in rollouts.items()}
    figures = timing.interleave(steps, rounds=case.rounds, clock=clock)
    return Result(
        case=case,
        time=timing.ratios(figures, REFERENCE),
        lr_over_hand=timing.ratios(figures, "hand lr")["propc lr"],
        memory={name: memory.peak_bytes(step, device) for name, step in steps.items()},
        trained={
            name: memory.peak_bytes(models.step(rollouts[name], trained), device) for name in (REFERENCE, *TRAINED)
        },
    )


def bounds(result: Result) -> list[timing.Bound]:
    """What one case should reach."""
    at = str(result.case)
    return [
        *(
            timing.Bound(f"{at}: time of {name} / {REFERENCE}", result.time[name].median, target)
            for name, target in result.case.targets.items()
        ),
        timing.Bound(f"{at}: time of propc lr / hand lr", result.lr_over_hand.median, LR_TARGET),
        timing.Bound(
            f"{at}: memory of propc tp / propc rp",
            result.memory["propc tp"] / result.memory["propc rp"],
            result.case.memory,
        ),
    ]


def time_table(results: Sequence[Result]) -> timing.Table:
    """Header and rows: median time over plain rp, quartiles in brackets."""
    over_hand = "propc lr / hand lr"
    columns = {str(result.case): {**result.time, over_hand: result.lr_over_hand} for result in results}
    return timing.ratio_table(f"step time / {REFERENCE}", columns)


def memory_table(results: Sequence[Result]) -> tuple[list[str], list[list[str]]]:
    """Header and rows: peak memory over plain rp."""
    rows = [
        [name, *(f"{result.memory[name] / result.memory[REFERENCE]:.2f}" for result in results)]
        for name in results[0].memory
    ]
    rows += [
        [f"{name}, W trained", *(f"{r.trained[name] / r.trained[REFERENCE]:.2f}" for r in results)] for name in TRAINED
    ]
    return ["peak memory / plain rp", *(str(result.case) for result in results)], rows


def main() -> int:
    """The command line."""
    parser = timing.options("Step time and memory on the chaotic RNN against plain PyTorch.")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="cpu", help="what is timed")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    device = torch.device("cpu")
    clock = timing.Clock.named(arguments.clock, device)
    results = [measure(case, device, clock) for case in (SMALL if arguments.small else FULL)]
    timing.show([time_table(results), memory_table(results)], arguments.out, "step_time")
    return timing.check([bound for result in results for bound in bounds(result)], strict=arguments.check)


if __name__ == "__main__":
    raise SystemExit(main())
