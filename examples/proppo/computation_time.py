"""Time of a step against plain PyTorch, by batch, dimension and number of steps (Proppo, figures 5 to 7).

A step clears the gradient, runs the chaotic RNN forward and goes backward through the mean loss.
Everything runs in one process on one thread, interleaved; the figures are CPU time, medians over
the rounds. "plain rp" is idiomatic PyTorch, `Normal(...).rsample()`. The first table gives ratios
to it after 10 steps. The second table gives microseconds per random choice for chains of up to
1000 of them, propc beside the same estimator written by hand in PyTorch: the difference is the
compiler's bookkeeping.

Run it: `python examples/proppo/computation_time.py`, options: `--help`.
"""

import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from common import chaotic_rnn, models, report, timing
from matplotlib.figure import Figure
from rich.console import Group
from rich.table import Table
from torch import Tensor
from tqdm import tqdm

import propc

AT_BETA = propc.estimator("tp", target="beta")
ESTIMATORS = {"rp": "rp", "lr": "lr", "tp at beta": AT_BETA, "tp at site": "tp"}
PLAIN = "plain rp"
BY_HAND = {"rp": "hand rp", "lr": "hand lr", "tp at beta": "hand tp[beta]"}  # the same in benchmarks/models.py

# Time over plain rp as measured with the Proppo library after 10 steps: (batch, dimension) -> ratio.
PROPPO = {
    (10, 2): {"rp": 2.1, "lr": 3.3, "tp at beta": 7.0},
    (1000, 2): {"rp": 1.8, "lr": 2.8, "tp at beta": 5.8},
    (1000, 100): {"rp": 1.1, "lr": 1.6, "tp at beta": 2.5},
    (1000, 500): {"rp": 1.05, "lr": 1.06, "tp at beta": 1.6},
    (10_000, 500): {"rp": 1.02, "lr": 1.09, "tp at beta": 1.6},
}

Rollout = Callable[..., Tensor]


def medians(rollouts: dict[str, Rollout], given: models.Problem, rounds: int) -> tuple[dict[str, float], Any]:
    """Nanoseconds of a step by candidate, and their ratios to `PLAIN` paired by round."""
    steps = {name: models.step(fn, given) for name, fn in rollouts.items()}
    clock = timing.Clock.named("cpu", torch.device("cpu"))
    figures = timing.interleave(steps, rounds=rounds, warmup=2 if rounds > 5 else 1, clock=clock)
    return {name: statistics.median(values) for name, values in figures.items()}, timing.ratios(figures, PLAIN)


def compiled() -> dict[str, Rollout]:
    """The model under each estimator."""
    return {name: propc.compile(models.rollout, estimator=choice) for name, choice in ESTIMATORS.items()}


def by_size(batches: Sequence[int], dims: Sequence[int], rounds: int) -> list[chaotic_rnn.Row]:
    """A row for each size and estimator after 10 steps: the ratio with its quartiles, and Proppo's."""
    rows = []
    rollouts = {PLAIN: models.by_hand()[PLAIN], **compiled()}
    for batch, dim in tqdm([(batch, dim) for batch in batches for dim in dims], desc="by size"):
        few = max(3, min(rounds, rounds * 200_000 // (batch * dim)))
        times, ratios = medians(rollouts, models.problem(batch, dim, 10), few)
        for name in ESTIMATORS:
            ratio = ratios[name]
            rows.append(
                {
                    "batch": batch,
                    "dim": dim,
                    "estimator": name,
                    "plain_ms": times[PLAIN] / 1e6,
                    "ratio": ratio.median,
                    "quartiles": [ratio.low, ratio.high],
                    "proppo": PROPPO.get((batch, dim), {}).get(name),
                }
            )
    return rows


def by_nodes(horizons: Sequence[int], rounds: int, batch: int = 10) -> list[chaotic_rnn.Row]:
    """A row for each horizon: microseconds of a step per random choice by candidate, two dimensions."""
    rows = []
    rollouts = {name: fn for name, fn in models.by_hand().items() if name in {PLAIN, *BY_HAND.values()}} | compiled()
    for horizon in tqdm(horizons, desc="by number of random choices"):
        few = max(3, min(rounds, rounds * 100 // horizon))
        times, _ = medians(rollouts, models.problem(batch, 2, horizon), few)
        rows.append({"horizon": horizon} | {name: value / 1e3 / horizon for name, value in times.items()})
    return rows


def size_table(rows: Sequence[chaotic_rnn.Row]) -> Table:
    """Ratios to plain rp, Proppo's in brackets."""
    table = Table(title="Time of a step over plain PyTorch's rp, 10 steps (in brackets: Proppo's)")
    for column in ("batch", "dim", "plain rp, ms", *ESTIMATORS):
        table.add_column(column, justify="right")
    for first in rows[:: len(ESTIMATORS)]:
        line = [row for row in rows if (row["batch"], row["dim"]) == (first["batch"], first["dim"])]
        ratios = [f"{row['ratio']:.2f}" + (f" ({row['proppo']:g})" if row["proppo"] else "") for row in line]
        table.add_row(str(first["batch"]), str(first["dim"]), f"{first['plain_ms']:.3g}", *ratios)
    return table


def node_table(rows: Sequence[chaotic_rnn.Row]) -> Table:
    """Microseconds per random choice, and the difference to the same by hand."""
    table = Table(title="Microseconds per random choice, forward and backward, batch 10: by hand | propc (difference)")
    for column in ("H", PLAIN, *BY_HAND):
        table.add_column(column, justify="right")
    for row in rows:
        pairs = [f"{row[hand]:.0f} | {row[name]:.0f} ({row[name] - row[hand]:+.0f})" for name, hand in BY_HAND.items()]
        table.add_row(str(row["horizon"]), f"{row[PLAIN]:.0f}", *pairs)
    return table


def plot(sizes: Sequence[chaotic_rnn.Row], nodes: Sequence[chaotic_rnn.Row], path: Path) -> None:
    """Ratio against batch, ratio against dimension, time against the number of random choices."""
    figure = Figure(figsize=(13, 3.8), layout="constrained")
    by_batch, by_dim, by_count = figure.subplots(1, 3)
    widest, middle = max(row["dim"] for row in sizes), sorted({row["batch"] for row in sizes})[1]
    for axes, key, other, value in ((by_batch, "batch", "dim", widest), (by_dim, "dim", "batch", middle)):
        for name in ESTIMATORS:
            line = [row for row in sizes if row["estimator"] == name and row[other] == value]
            (drawn,) = axes.plot([row[key] for row in line], [row["ratio"] for row in line], ".-", label=name)
            known = [row for row in line if row["proppo"]]
            circles = {"fillstyle": "none", "markersize": 9, "color": drawn.get_color()}
            axes.plot([row[key] for row in known], [row["proppo"] for row in known], "o", **circles)
        axes.axhline(1, color="black", linewidth=0.8)
        axes.set(title=f"{other} {value}", xlabel=key, xscale="log", yscale="log")
    for name in (PLAIN, *ESTIMATORS):
        seconds = [row[name] * row["horizon"] / 1e6 for row in nodes]
        style = {"color": "black"} if name == PLAIN else {}
        by_count.plot([row["horizon"] for row in nodes], seconds, ".-", label=name, **style)
    by_count.set(title="batch 10, dim 2", xlabel="random choices", ylabel="seconds a step", xscale="log", yscale="log")
    by_batch.set_ylabel("time over plain rp (circles: Proppo's)")
    by_count.legend()
    figure.savefig(path, dpi=100)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, tabulate, plot."""
    args = report.parser("proppo/computation_time", __doc__).parse_args(argv)
    batches, dims, horizons, rounds = (10, 1000, 10_000), (2, 100, 500), (10, 30, 100, 300, 1000), 15
    if args.smoke:
        batches, dims, horizons, rounds = (10, 100), (2, 20), (10, 30), 3
    args.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    torch.manual_seed(0)

    sizes, nodes = by_size(batches, dims, rounds), by_nodes(horizons, rounds)
    report.show(Group(size_table(sizes), node_table(nodes)), args.out)
    report.write_results([*sizes, *nodes], args.out)
    plot(sizes, nodes, args.out / "time.png")
    print(f"Tables and plot are in {args.out}")


if __name__ == "__main__":
    main()
