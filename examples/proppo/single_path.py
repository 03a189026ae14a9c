"""Variance of the gradient of the chaotic RNN by rp, lr and tp (Proppo, sections 4.2 and C.2).

Every cell of beta and H is measured with its own error bar, and its mean is compared with the
exact gradient by quadrature: tp's weights are computed from the batch that they weigh, which
makes its gradient a little too small in chaos. Three ways to weigh:

    tp at beta, same   as the Proppo library does: variances of the gradients in beta, from the
                       batch that is weighed
    tp at beta         the same, each half of the batch weighed by the other (propc's default)
    tp at site         variances of the gradients in the random choice's own mean: cheaper

Run it: `python examples/proppo/single_path.py`, options: `--help`.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from common import Variance, chaotic_rnn, report
from matplotlib.figure import Figure
from quadrature import exact_gradients
from rich.table import Table
from tqdm import tqdm

import propc

AS_PROPPO = "tp at beta, same"
ESTIMATORS = {
    "rp": "rp",
    "lr": "lr",
    AS_PROPPO: propc.estimator("tp", target="beta", weights="same"),
    "tp at beta": propc.estimator("tp", target="beta"),
    "tp at site": "tp",
}
MEASURED = {"rp": "rp", "lr": "lr", AS_PROPPO: "tp at beta"}  # names in chaotic_rnn.PROPPO


def measure(betas: Sequence[float], horizons: Sequence[int], batch: int, repeats: int) -> list[chaotic_rnn.Row]:
    """A row for every cell: mean and variance with standard errors, the exact gradient, Proppo's variance."""
    rows = []
    exact = {beta: exact_gradients(beta, horizons) for beta in tqdm(betas, desc="exact gradients")}
    cells = [(H, beta, name) for H in horizons for beta in betas for name in ESTIMATORS]
    for horizon, beta, name in tqdm(cells, desc="single path"):
        draws = chaotic_rnn.gradients(ESTIMATORS[name], beta, horizon, batch, repeats)
        variance = Variance.of(draws)
        rows.append(
            {
                "horizon": horizon,
                "beta": beta,
                "estimator": name,
                "exact": exact[beta][horizon],
                "mean": draws.mean().item(),
                "mean_stderr": (variance.value / repeats) ** 0.5,
                "variance": variance.value,
                "variance_stderr": variance.stderr,
                "proppo": chaotic_rnn.PROPPO.get((beta, horizon), {}).get(MEASURED.get(name, "")),
            }
        )
    return rows


def tabulate(rows: Sequence[chaotic_rnn.Row], batch: int, repeats: int) -> Table:
    """One line for every estimator, a section for every horizon and beta."""
    table = Table(title=f"Single path: gradient in beta, batch {batch}, {repeats} estimates; (z): in standard errors")
    for column in ("H", "beta", "exact", "estimator", "mean ± s.e.", "bias (z)", "variance ± s.e.", "Proppo's", "(z)"):
        table.add_column(column, justify="right", no_wrap=column == "estimator")
    first, *_, last = ESTIMATORS
    for row in rows:
        of_cell = (str(row["horizon"]), f"{row['beta']:g}", f"{row['exact']:.4f}")
        variance, theirs = Variance(row["variance"], row["variance_stderr"]), row["proppo"]
        table.add_row(
            *(of_cell if row["estimator"] == first else ("", "", "")),
            row["estimator"],
            f"{row['mean']:.3g} ± {row['mean_stderr']:.1g}",
            f"{(row['mean'] - row['exact']) / row['mean_stderr']:+.1f}",
            str(variance),
            "" if theirs is None else f"{theirs:.2g}",
            "" if theirs is None else f"{variance.deviation(theirs):+.1f}",
            end_section=row["estimator"] == last,
        )
    return table


def plot(rows: Sequence[chaotic_rnn.Row], horizons: Sequence[int], path: Path) -> None:
    """Variance against beta, a panel for every horizon; rp leaves the picture at the top."""
    figure = Figure(figsize=(4.3 * len(horizons), 3.8), layout="constrained")
    panels = figure.subplots(1, len(horizons), sharey=True, squeeze=False)[0]
    for axes, horizon in zip(panels, horizons, strict=True):
        for name in ESTIMATORS:
            line = [row for row in rows if row["horizon"] == horizon and row["estimator"] == name]
            betas, values, errors = ([row[key] for row in line] for key in ("beta", "variance", "variance_stderr"))
            drawn = axes.errorbar(betas, values, [2 * error for error in errors], fmt=".-", capsize=2, label=name)
            known = [row for row in line if row["proppo"] is not None]
            circles = {"fillstyle": "none", "markersize": 9, "color": drawn.lines[0].get_color()}
            axes.plot([row["beta"] for row in known], [row["proppo"] for row in known], "o", **circles)
        axes.set(title=f"H = {horizon}", xlabel="beta", yscale="log", ylim=(None, 1e2))
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("variance ± 2 s.e. (circles: Proppo's)")
    panels[0].legend()
    figure.savefig(path, dpi=100)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, tabulate, plot."""
    options = report.parser("proppo/single_path", __doc__)
    options.add_argument("--repeats", type=int, default=300, help="estimates per cell")
    args = options.parse_args(argv)
    betas, horizons, batch, repeats = chaotic_rnn.BETAS, (10, 30, 100), 1000, args.repeats
    if args.smoke:
        betas, horizons, batch, repeats = (1.5, 2.5), (3, 10), 1000, 50
    args.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)

    rows = measure(betas, horizons, batch, repeats)
    report.show(tabulate(rows, batch, repeats), args.out)
    report.write_results(rows, args.out)
    plot(rows, horizons, args.out / "variance.png")
    print(f"Table and plot are in {args.out}")


if __name__ == "__main__":
    main()
