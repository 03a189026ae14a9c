"""Gaussian shaping against nuisance paths: the chaotic RNN in D copies (Proppo, section C.3, figure 11).

D networks run side by side, and the loss is summed over all of them; the gradient is that in the
first one's beta. To it the other D - 1 are noise on the loss, so that the variance of lr grows as D,
and that of tp too where it leans on lr. Gaussian shaping (gs, gs-tp) refits a Gaussian to the first
network's last state and sends to its random choices how the loss depends on that Gaussian's mean and
covariance: the other networks' losses no longer enter, and the variance stays where it is at D = 1.

The other networks are random choices too, but nothing before them wants a gradient, so the compiler
only draws them. The loss is one expression of the joint state, as in the paper. Written as a sum,
loss of the first plus loss of the others, the compiler takes it apart and sends no site a cost that
it does not influence: the line "lr, loss as a sum" stays flat without any shaping.

Run it: `python examples/proppo/multi_path.py`, options: `--help`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from common import Variance, chaotic_rnn, report
from matplotlib.figure import Figure
from quadrature import exact_gradients
from rich.table import Table
from torch import Tensor
from torch.distributions import Normal
from tqdm import tqdm

import propc

PATHS = (1, 4, 16, 64)
BETAS = (2.0, 2.5, 3.5)
AS_SUM = "lr, loss as a sum"
NAMES = ("lr", "tp", "gs", "gs-tp", AS_SUM)

# Variance as measured with the Proppo library, batch 1000, 100 steps: (beta, estimator) -> by paths.
PROPPO_HORIZON = 100
PROPPO: dict[tuple[float, str], dict[int, float]] = {
    (2.0, "tp"): {1: 1.3e-7},
    (2.0, "gs-tp"): {1: 2.2e-7},
    (2.5, "lr"): {1: 0.35, 4: 1.4, 16: 5.2, 64: 18},
    (2.5, "tp"): {1: 0.017, 4: 0.044, 16: 0.13, 64: 0.43},
    (2.5, "gs"): dict.fromkeys(PATHS, 0.35),
    (2.5, "gs-tp"): dict.fromkeys(PATHS, 0.017),
}


@propc.compile(estimator="lr")
def rollout(beta: Tensor, others: Tensor, x0: Tensor, W: Tensor, paths: int, horizon: int, as_sum: bool) -> Tensor:
    """The loss summed over all paths, [batch].

    Args:
        beta: of the first path, a scalar.
        others: beta of the other paths, a scalar; in single precision if they should be quick.
        x0: the start of every path, [batch, 2].
        W: the weights, [2, 2].
        paths: how many.
        horizon: steps.
        as_sum: write the loss as a sum of that of the first path and that of the others.
    """
    first = x0
    rest = x0.to(others.dtype).unsqueeze(1).expand(-1, paths - 1, -1)
    for t in range(horizon):
        first = propc.sample(Normal(torch.sigmoid(beta * (first @ W)), 0.001), name=f"x{t}")
        if paths > 1:
            rest = propc.sample(Normal(torch.sigmoid(others * (rest @ W.to(rest.dtype))), 0.001), name=f"other{t}")
    if as_sum and paths > 1:
        return 0.5 * (1 - first).square().sum(-1) + 0.5 * (1 - rest).square().sum((1, 2)).to(first.dtype)
    state = torch.cat([first.unsqueeze(1), rest.to(first.dtype)], 1)
    return 0.5 * (1 - state).square().sum((1, 2))


def arguments(beta: float, batch: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """beta, others, x0 and W."""
    own, x0, W = chaotic_rnn.arguments(beta, batch)
    return own, torch.tensor(beta, dtype=torch.float32), x0, W


def estimators(horizon: int) -> dict[str, Any]:
    """As Proppo weighs: at beta, by the batch itself; the Gaussian is refitted to the first path's last state."""
    weights = {"target": "beta", "weights": "same"}
    last = f"x{horizon - 1}"
    return {
        "lr": "lr",
        "tp": propc.estimator("tp", **weights),
        "gs": propc.estimator("gs", at=last),
        "gs-tp": propc.estimator("gs-tp", at=last, **weights),
        AS_SUM: "lr",
    }


def measure(
    betas: Sequence[float], paths: Sequence[int], horizon: int, batch: int, repeats: int
) -> list[chaotic_rnn.Row]:
    """A row for every cell: mean and variance with standard errors, the exact gradient, Proppo's variance."""
    rows = []
    exact = {beta: exact_gradients(beta, [horizon])[horizon] for beta in tqdm(betas, desc="exact gradients")}
    programs = {name: rollout.with_estimator(choice) for name, choice in estimators(horizon).items()}
    for name, beta, count in tqdm([(n, b, d) for n in NAMES for b in betas for d in paths], desc="multi path"):
        inputs = arguments(beta, batch)
        options = {"paths": count, "horizon": horizon, "as_sum": name == AS_SUM}
        grads = [torch.autograd.grad(programs[name](*inputs, **options).mean(), inputs[0]) for _ in range(repeats)]
        draws = torch.stack([grad for (grad,) in grads])
        variance = Variance.of(draws)
        rows.append(
            {
                "beta": beta,
                "estimator": name,
                "paths": count,
                "exact": exact[beta],
                "mean": draws.mean().item(),
                "mean_stderr": (variance.value / repeats) ** 0.5,
                "variance": variance.value,
                "variance_stderr": variance.stderr,
                "proppo": PROPPO.get((beta, name), {}).get(count) if horizon == PROPPO_HORIZON else None,
            }
        )
    return rows


def cells(rows: Sequence[chaotic_rnn.Row], beta: float, name: str) -> list[chaotic_rnn.Row]:
    """One line of the figure: by number of paths."""
    return [row for row in rows if row["beta"] == beta and row["estimator"] == name]


def tabulate(rows: Sequence[chaotic_rnn.Row], paths: Sequence[int], batch: int, repeats: int) -> Table:
    """Variance by number of paths, a line for every estimator, Proppo's figures below ours."""
    title = f"Multi path: variance ± s.e. of the gradient in the first beta, batch {batch}, {repeats} estimates"
    table = Table(title=title)
    for column in ("beta", "estimator", *(f"D = {count}" for count in paths), "mean (D = 1)", "exact"):
        table.add_column(column, justify="right", no_wrap=column == "estimator")
    for beta in dict.fromkeys(row["beta"] for row in rows):
        for name in NAMES:
            line = cells(rows, beta, name)
            one = line[0]
            table.add_row(
                f"{beta:g}" if name == NAMES[0] else "",
                name,
                *(str(Variance(row["variance"], row["variance_stderr"])) for row in line),
                f"{one['mean']:.3g} ± {one['mean_stderr']:.1g}",
                f"{one['exact']:.4f}" if name == NAMES[0] else "",
            )
            if any(row["proppo"] is not None for row in line):
                table.add_row("", "Proppo's (z)", *map(beside, line), style="dim")
        table.add_section()
    return table


def beside(row: chaotic_rnn.Row) -> str:
    """Proppo's figure, and how far ours is from it in standard errors."""
    if row["proppo"] is None:
        return ""
    return f"{row['proppo']:.2g} ({Variance(row['variance'], row['variance_stderr']).deviation(row['proppo']):+.1f})"


def plot(rows: Sequence[chaotic_rnn.Row], betas: Sequence[float], paths: Sequence[int], path: Path) -> None:
    """Variance against the number of paths, a panel for every beta."""
    figure = Figure(figsize=(4.3 * len(betas), 3.8), layout="constrained")
    panels = figure.subplots(1, len(betas), squeeze=False)[0]
    for axes, beta in zip(panels, betas, strict=True):
        for name in NAMES:
            line = cells(rows, beta, name)
            values, errors = ([row[key] for row in line] for key in ("variance", "variance_stderr"))
            style = ".:" if name == AS_SUM else ".-"
            drawn = axes.errorbar(paths, values, [2 * error for error in errors], fmt=style, capsize=2, label=name)
            known = [row for row in line if row["proppo"] is not None]
            circles = {"fillstyle": "none", "markersize": 9, "color": drawn.lines[0].get_color()}
            axes.plot([row["paths"] for row in known], [row["proppo"] for row in known], "o", **circles)
        axes.set(title=f"beta = {beta:g}", xlabel="paths D", xscale="log", yscale="log", xticks=paths)
        axes.set_xticklabels([str(count) for count in paths])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("variance ± 2 s.e. (circles: Proppo's)")
    panels[-1].legend(fontsize="small")
    figure.savefig(path, dpi=100)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, tabulate, plot, and write the graph."""
    options = report.parser("proppo/multi_path", __doc__)
    options.add_argument("--repeats", type=int, default=100, help="estimates per cell")
    args = options.parse_args(argv)
    betas, paths, horizon, batch, repeats = BETAS, PATHS, 100, 1000, args.repeats
    if args.smoke:
        betas, paths, horizon, batch, repeats = (2.0,), (1, 16), 10, 1000, 50
    args.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)

    rows = measure(betas, paths, horizon, batch, repeats)
    report.show(tabulate(rows, paths, batch, repeats), args.out)
    report.write_results(rows, args.out)
    plot(rows, betas, paths, args.out / "variance.png")
    shown = rollout.with_estimator(estimators(3)["gs-tp"])
    report.write_graph(shown.graph(*arguments(2.0, batch), paths=4, horizon=3, as_sum=False), args.out)
    print(f"Table, plot and graph are in {args.out}")


if __name__ == "__main__":
    main()
