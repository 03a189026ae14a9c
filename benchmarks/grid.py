"""Time of one training step on the chaotic RNN over a grid of batch sizes, dimensions and horizons.

    python benchmarks/grid.py [--small] [--check] [--out docs/benchmarks.md]

Ratios are to plain PyTorch without distribution objects, as in `by_backend.py`; one thread. Cells whose plain step
would take too long are left out. Proppo and Storchastic take part where they are installed, as in `peers.py`.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import candidates
import models
import peers
import timing
import torch
from tqdm import tqdm

ESTIMATORS = ("rp", "lr", "tp")
BACKENDS = ("eager", "inductor")
LONGEST = 0.1  # seconds of a plain step, as estimated; cells beyond are left out
LONGEST_STORCHASTIC = 10  # its time grows with the cube of the horizon
WORST = {"eager tp": 4.0, "inductor tp": 2.0}  # targets in the worst cell of the grid

COLUMNS: dict[str, tuple[str, ...]] = {
    "rp": ("eager rp", "inductor rp", "torch.compile rp, a step", "Proppo rp", "Storchastic rp"),
    "lr": ("eager lr", "inductor lr", "hand lr", "Proppo lr", "Storchastic lr"),
    "tp": ("eager tp", "inductor tp", "Proppo tp[beta]"),
}
"""What a table shows in each cell, by estimator."""


@dataclass(frozen=True)
class Cell:
    """One size of the problem."""

    batch: int
    dim: int
    horizon: int

    @property
    def seconds(self) -> float:
        """A rough estimate of a plain step: calls, elements, products."""
        elements = self.batch * self.dim
        return self.horizon * (4e-5 + 2.5e-8 * elements + 1e-10 * elements * self.dim)

    def __str__(self) -> str:
        return f"B={self.batch} D={self.dim} H={self.horizon}"


Results = dict[Cell, dict[str, timing.Ratio]]
FULL = tuple(itertools.starmap(Cell, itertools.product((10, 100, 1000, 10_000), (2, 10, 100, 500), (1, 10, 100, 1000))))
SMALL = (Cell(1000, 2, 1), Cell(1000, 2, 10))  # the size of the other benchmarks: compiled once for all


def measure(cell: Cell, clock: timing.Clock) -> dict[str, timing.Ratio]:
    """Everyone but Storchastic on one cell."""
    given = models.problem(cell.batch, cell.dim, cell.horizon)
    rollouts = {"hand lr": models.surrogate_lr, **candidates.by_compiler(cell.horizon, whole=False)}
    for backend in BACKENDS:
        rollouts |= candidates.by_propc(backend, ESTIMATORS)
    steps = {name: models.step(fn, given) for name, fn in rollouts.items()} | peers.proppo(given)
    return peers.measured(steps, given, rounds(cell), clock)


def with_storchastic(results: Results, clock: timing.Clock) -> None:
    """Add Storchastic's steps, last of all."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for cell, found in results.items():
            given = models.problem(cell.batch, cell.dim, cell.horizon)
            if cell.horizon <= LONGEST_STORCHASTIC and (steps := peers.storchastic(given)):
                found |= peers.measured(steps, given, 3, clock)


def rounds(cell: Cell) -> int:
    """Few where a step is long."""
    return min(9, max(3, round(0.1 / cell.seconds)))


def table(estimator: str, results: Results) -> timing.Table:
    """A row for each batch and dimension, a column for each horizon; in a cell one ratio for each candidate."""
    shown = [name for name in COLUMNS[estimator] if any(name in found for found in results.values())]
    horizons = sorted({cell.horizon for cell in results})
    sizes = dict.fromkeys((cell.batch, cell.dim) for cell in results)
    rows = [
        [f"B={batch} D={dim}", *(entry(results.get(Cell(batch, dim, horizon)), shown) for horizon in horizons)]
        for batch, dim in sizes
    ]
    return [" · ".join(shown), *(f"H={horizon}" for horizon in horizons)], rows


def entry(found: Mapping[str, timing.Ratio] | None, shown: Sequence[str]) -> str:
    """The medians of a cell; a dash where nothing was measured."""
    if found is None:
        return "–"
    return " · ".join(f"{found[name].median:.2g}" if name in found else "–" for name in shown)


def bounds(results: Results) -> list[timing.Bound]:
    """The worst cell of `tp`, the dearest estimator, on each backend."""
    worst = {name: max(found[name].median for found in results.values()) for name in WORST}
    return [timing.Bound(f"worst cell: {name} / {peers.REFERENCE}", worst[name], t) for name, t in WORST.items()]


def left_out(cells: Iterable[Cell]) -> str:
    """Which cells have no figures."""
    return f"Left out, a plain step would take more than {LONGEST:g} s: " + "; ".join(map(str, cells)) + "."


def main() -> int:
    """The command line."""
    arguments = timing.options("Step time on the chaotic RNN by batch, dimension and horizon.").parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    clock = timing.Clock.named("cpu", torch.device("cpu"))
    cells = SMALL if arguments.small else FULL
    chosen = [cell for cell in cells if cell.seconds <= LONGEST]
    results = {cell: measure(cell, clock) for cell in tqdm(chosen, desc="grid")}
    with_storchastic(results, clock)
    timing.show([table(estimator, results) for estimator in COLUMNS], arguments.out, "grid")
    if missing := [cell for cell in cells if cell not in results]:
        print(left_out(missing) + "\n")
    return timing.check(bounds(results), strict=arguments.check)


if __name__ == "__main__":
    raise SystemExit(main())
