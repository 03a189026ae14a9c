"""Variance × time of the estimators of dL/dβ on the chaotic RNN: what a given precision costs.

    python benchmarks/variance_time.py [--small] [--check] [--out docs/benchmarks.md]

The variance is that of estimates from batches of 1000, the time that of a step on the `inductor` backend, whose numbers
are those of `eager`; both are over plain PyTorch, reparameterized. An estimator with a tenth of the product reaches the
same precision in a tenth of the time. One thread, CPU time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import candidates
import models
import timing
import torch
from torch import Tensor
from tqdm import tqdm

REFERENCE = "hand rp"
ESTIMATORS = ("rp", "lr", "tp", "tp[beta]", "gs", "gs-tp")
BACKENDS = ("eager", "inductor")
BATCH = 1000
BETAS, HORIZONS, REPEATS = (1.5, 2.0, 2.5, 3.5), (10, 30, 100), 300
SMALL_BETAS, SMALL_HORIZONS = (3.5,), (30,)
CHAOTIC = 3.5, 30  # β and horizon where total propagation is far below both of its parts, whatever the draws
TARGETS = {"rp": 0.1, "lr": 0.5}  # tp[beta]'s product over theirs there

Times = Mapping[int, Mapping[str, timing.Ratio]]  # horizon -> candidate -> time over the reference


@dataclass(frozen=True)
class Variances:
    """Of dL/dβ by estimator, at one β and horizon."""

    beta: float
    horizon: int
    of: Mapping[str, float]

    def cost(self, estimator: str, times: Times) -> float:
        """Variance × time over that of plain rp."""
        return self.of[estimator] / self.of["rp"] * times[self.horizon][f"inductor {estimator}"].median


def gradients(rollout: candidates.Rollout, given: models.Problem, estimates: int) -> Tensor:
    """Independent estimates of dL/dβ, [estimates], in double precision."""
    step = models.step(rollout, given)
    found = []
    for _ in range(estimates):
        step()
        assert given.beta.grad is not None
        found.append(given.beta.grad.double())
    return torch.stack(found)


def variances(betas: Sequence[float], horizons: Sequence[int], estimates: int) -> list[Variances]:
    """Every estimator at every β and horizon."""
    rollouts = dict(zip(ESTIMATORS, candidates.by_propc("inductor", ESTIMATORS).values()))
    found = []
    for beta, horizon in tqdm(list(product(betas, horizons)), desc="variances"):
        given = models.problem(BATCH, 2, horizon, beta=beta)
        of = {name: gradients(rollout, given, estimates).var().item() for name, rollout in rollouts.items()}
        found.append(Variances(beta, horizon, of))
    return found


def times(horizons: Sequence[int], rounds: int) -> Times:
    """Steps of every estimator on every backend."""
    clock = timing.Clock.named("cpu", torch.device("cpu"))
    found = {}
    for horizon in horizons:
        rollouts = {REFERENCE: models.direct_rp}
        for backend in BACKENDS:
            rollouts |= candidates.by_propc(backend, ESTIMATORS)
        given = models.problem(BATCH, 2, horizon)
        steps = {name: models.step(fn, given) for name, fn in rollouts.items()}
        few = max(5, rounds * 10 // horizon)
        found[horizon] = timing.ratios(timing.interleave(steps, rounds=few, warmup=3, clock=clock), REFERENCE)
    return found


def cost_table(found: Sequence[Variances], took: Times) -> timing.Table:
    """Variance × time over plain rp's; the least of a row in bold."""
    rows = []
    for each in found:
        costs = {name: each.cost(name, took) for name in ESTIMATORS}
        least = min(costs.values())
        shown = [f"**{cost:.2g}**" if cost == least else f"{cost:.2g}" for cost in costs.values()]
        rows.append([f"β={each.beta:g} H={each.horizon}", f"{each.of['rp']:.1e}", *shown])
    return [f"variance × time / {REFERENCE}", "variance of rp", *ESTIMATORS], rows


def bounds(found: Sequence[Variances], took: Times) -> list[timing.Bound]:
    """That total propagation pays where the rollout is chaotic."""
    return [
        timing.Bound(
            f"β={each.beta:g} H={each.horizon}: variance × time of tp[beta] / {other}",
            each.cost("tp[beta]", took) / each.cost(other, took),
            target,
            slack=5.0,  # the variance of a pathwise gradient is that of rare, huge draws
        )
        for each in found
        if (each.beta, each.horizon) == CHAOTIC
        for other, target in TARGETS.items()
    ]


def main() -> int:
    """The command line."""
    arguments = timing.options("Variance times time of the estimators on the chaotic RNN.").parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    small = arguments.small
    betas, horizons = (SMALL_BETAS, SMALL_HORIZONS) if small else (BETAS, HORIZONS)
    took = times(horizons, 21 if small else 61)
    torch.manual_seed(0)  # timing takes as many draws as it takes
    found = variances(betas, horizons, REPEATS)
    taken = timing.ratio_table(f"step time / {REFERENCE}", {f"H={horizon}": of for horizon, of in took.items()})
    timing.show([cost_table(found, took), taken], arguments.out, "variance_time")
    return timing.check(bounds(found, took), strict=arguments.check)


if __name__ == "__main__":
    raise SystemExit(main())
