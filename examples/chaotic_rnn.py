"""The chaotic recurrent network of Proppo: what to do when the pathwise gradient explodes.

Two neurons, x' = sigmoid(beta x W) + noise, should end at (1, 1) after H steps. Near beta = 2.5
the network becomes chaotic: the variance of the pathwise gradient (rp) explodes, that of the
likelihood ratio (lr) stays moderate, and total propagation (tp) keeps the better of the two at
every step. tp weighs them by their variances, taken at the parameter beta or, which is cheaper,
at the random choice itself.

Run it: `python examples/chaotic_rnn.py`, options: `--help`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from report import parser, show, write_graph, write_results
from rich.table import Table
from torch import Tensor
from torch.distributions import Normal
from tqdm import tqdm

import propc

ESTIMATORS = {
    "rp": "rp",
    "lr": "lr",
    "tp at beta": propc.estimator("tp", target="beta"),
    "tp at site": "tp",
}
BETAS = (1.5, 2.0, 2.5, 3.5)

# Variance of the gradient as measured with the Proppo library (Parmas et al., 2022) on this
# problem, with batch 1000 and 300 estimates: (beta, H) -> variance. Its tp weighs at beta, by the
# variances of the very batch that it weighs: less noisy than the default here (each half of the
# batch gives the weights of the other), but biased.
PROPPO = {
    (2.0, 100): {"rp": 1.3e-7, "lr": 5.5e-3, "tp at beta": 1.3e-7},
    (2.5, 10): {"rp": 1.8e-5, "lr": 7.9e-3, "tp at beta": 1.9e-5},
    (2.5, 30): {"rp": 4.5e-3, "lr": 6.9e-2, "tp at beta": 9.2e-4},
    (2.5, 100): {"rp": 2e3, "lr": 0.32, "tp at beta": 1.6e-2},
    (3.5, 10): {"rp": 3.2e-3, "lr": 2.7e-2, "tp at beta": 8.4e-5},
    (3.5, 30): {"rp": 8e4, "lr": 0.31, "tp at beta": 5.7e-2},
    (3.5, 100): {"rp": 7e30, "lr": 1.3, "tp at beta": 0.43},
}

Row = dict[str, Any]


@propc.compile(estimator="rp")
def rollout(beta: Tensor, x0: Tensor, W: Tensor, horizon: int) -> Tensor:
    """The loss after `horizon` steps, one value per row of the batch."""
    x = x0
    for t in range(horizon):
        x = propc.sample(Normal(torch.sigmoid(beta * (x @ W)), 0.001), name=f"x{t}")
    return 0.5 * (1 - x).square().sum(-1)


def arguments(beta: float, batch: int) -> tuple[Tensor, Tensor, Tensor]:
    """beta, x0 and W; float64, for chaotic gradients reach 1e15 and their squares 1e30."""
    return (
        torch.tensor(beta, dtype=torch.float64, requires_grad=True),
        torch.tensor([0.35, 0.55], dtype=torch.float64).expand(batch, 2),
        torch.tensor([[-5.0, -25.0], [5.0, 25.0]], dtype=torch.float64),
    )


def gradients(estimator: Any, beta: float, horizon: int, batch: int, repeats: int) -> Tensor:
    """Independent estimates of the gradient of the mean loss in beta, shape [repeats]."""
    cost = rollout.with_estimator(estimator)
    inputs = arguments(beta, batch)
    draws = torch.stack(
        [torch.autograd.grad(cost(*inputs, horizon=horizon).mean(), inputs[0])[0] for _ in range(repeats)]
    )
    if not draws.isfinite().all():
        raise FloatingPointError(f"gradient overflow at beta={beta}, H={horizon}, {estimator}")
    return draws


def measure(horizons: Sequence[int], batch: int, repeats: int) -> list[Row]:
    """Mean, standard error and variance of every estimator at every beta and horizon."""
    cells = [(H, beta, name) for H in horizons for beta in BETAS for name in ESTIMATORS]
    rows = []
    for horizon, beta, name in tqdm(cells, desc="chaotic rnn"):
        draws = gradients(ESTIMATORS[name], beta, horizon, batch, repeats)
        rows.append(
            {
                "horizon": horizon,
                "beta": beta,
                "estimator": name,
                "mean": draws.mean().item(),
                "stderr": draws.std().item() / repeats**0.5,
                "variance": draws.var().item(),
                "proppo": PROPPO.get((beta, horizon), {}).get(name),
            }
        )
    return rows


def tabulate(rows: Sequence[Row], batch: int, repeats: int) -> Table:
    """One line for every estimator, a section for every horizon and beta."""
    table = Table(title=f"Chaotic RNN: gradient in beta, batch {batch}, {repeats} estimates")
    for column in ("H", "beta", "estimator", "gradient", "± s.e.", "variance", "Proppo's"):
        table.add_column(column, justify="right")
    for row in rows:
        first = row["estimator"] == next(iter(ESTIMATORS))
        table.add_row(
            str(row["horizon"]) if first else "",
            str(row["beta"]) if first else "",
            row["estimator"],
            f"{row['mean']:.4g}",
            f"{row['stderr']:.1g}",
            f"{row['variance']:.1e}",
            f"{row['proppo']:.1e}" if row["proppo"] else "",
            end_section=row["estimator"] == next(reversed(ESTIMATORS)),
        )
    return table


def plot(rows: Sequence[Row], horizons: Sequence[int], path: Path) -> None:
    """Variance against beta, a panel for every horizon; rp leaves the picture at the top."""
    figure = Figure(figsize=(4.3 * len(horizons), 3.8), layout="constrained")
    panels = figure.subplots(1, len(horizons), sharey=True)
    for axes, horizon in zip(panels, horizons, strict=True):
        for name in ESTIMATORS:
            line = [r for r in rows if r["horizon"] == horizon and r["estimator"] == name]
            (drawn,) = axes.plot([r["beta"] for r in line], [r["variance"] for r in line], ".-", label=name)
            known = [r for r in line if r["proppo"]]
            circles = {"fillstyle": "none", "markersize": 9, "color": drawn.get_color()}
            axes.plot([r["beta"] for r in known], [r["proppo"] for r in known], "o", **circles)
        axes.set(title=f"H = {horizon}", xlabel="beta", xticks=BETAS, yscale="log", ylim=(None, 1e4))
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("variance of the gradient (circles: Proppo's)")
    figure.axes[0].legend()
    figure.savefig(path, dpi=120)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, tabulate, plot, and write the graph."""
    options = parser("chaotic_rnn", __doc__)
    options.add_argument("--repeats", type=int, default=300, help="estimates per cell")
    args = options.parse_args(argv)
    horizons, batch, repeats = ([3, 10], 200, 20) if args.smoke else ([10, 30, 100], 1000, args.repeats)
    args.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)

    rows = measure(horizons, batch, repeats)
    show(tabulate(rows, batch, repeats), args.out)
    write_results(rows, args.out)
    plot(rows, horizons, args.out / "variance.png")
    compiled = rollout.with_estimator(ESTIMATORS["tp at beta"])
    write_graph(compiled.graph(*arguments(2.5, batch), horizon=horizons[0]), args.out)
    print(f"Table, plot and graph are in {args.out}")


if __name__ == "__main__":
    main()
