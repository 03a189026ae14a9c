"""The chaotic RNN by itself: its attractor, its gradient and its loss surface (Proppo, figure 8).

(a) Where the network without noise ends up, against beta: a bifurcation diagram. The table adds
    the Lyapunov exponent, the growth rate of a small difference, without noise and with it: where
    it is positive there is chaos, and the pathwise gradient explodes.
(b) The gradient of the loss after 100 steps, against beta, under a fixed seed, by rp, lr and tp.
(c) The loss after 15 steps, without noise, against the initial state: a fractal. As in the paper
    one weight is perturbed; else the weights have rank one, and the picture is one of stripes.

Run it: `python examples/proppo/landscape.py`, options: `--help`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from common import chaotic_rnn, report
from matplotlib.figure import Figure
from rich.table import Table
from torch import Tensor
from tqdm import tqdm

SEED = 0
SHOWN = (1.0, 1.5, 2.0, 2.25, 2.5, 3.0, 3.5, 4.0)  # lines of the table
ESTIMATORS = {name: chaotic_rnn.ESTIMATORS[name] for name in ("rp", "lr", "tp at beta")}
MANY = 100  # that many different states, and no period is given


@dataclass(frozen=True)
class Attractor:
    """Where the network stays, for n values of beta."""

    betas: Tensor  # [n]
    states: Tensor  # [kept, n], the first neuron in the last steps
    exponents: Tensor  # [n], Lyapunov

    def period(self, index: int) -> int:
        """How many different states are visited."""
        return len(self.states[:, index].mul(1e6).round().unique())


def attractor(betas: Tensor, steps: int, kept: int, noise: float) -> Attractor:
    """Run `steps` steps for all betas at once, and keep the last `kept`."""
    torch.manual_seed(SEED)
    _, x0, W = chaotic_rnn.arguments(0.0, len(betas))
    x, beta = x0, betas.unsqueeze(-1)
    difference = torch.tensor([[1.0, 0.0]], dtype=x.dtype).expand_as(x)  # a small one, of length 1
    growth, states = torch.zeros_like(betas), []
    for step in tqdm(range(steps), desc=f"attractor, noise {noise}"):
        mean = torch.sigmoid(beta * (x @ W))
        x = mean + noise * torch.randn_like(mean)
        difference = beta * mean * (1 - mean) * (difference @ W)
        length = difference.norm(dim=-1)
        difference = difference / length.unsqueeze(-1)
        if step >= steps - kept:
            growth = growth + length.log() / kept
            states.append(x[:, 0])
    return Attractor(betas, torch.stack(states), growth)


def gradient_curves(betas: Tensor, horizon: int, batch: int) -> dict[str, Tensor]:
    """One estimate [n] of the gradient at each beta, all from the same random numbers."""
    curves = {}
    for name, estimator in ESTIMATORS.items():
        cost = chaotic_rnn.rollout.with_estimator(estimator)
        draws = []
        for value in tqdm(betas.tolist(), desc=f"gradient by {name}"):
            beta, x0, W = chaotic_rnn.arguments(value, batch)
            torch.manual_seed(SEED)
            draws += torch.autograd.grad(cost(beta, x0, W, horizon=horizon).mean(), beta)
        curves[name] = torch.stack(draws)
    return curves


def loss_surface(resolution: int, beta: float = 3.5, horizon: int = 15) -> Tensor:
    """The loss [resolution, resolution] against both neurons' initial states in [0, 1], the second in rows."""
    _, _, W = chaotic_rnn.arguments(beta, 1)
    W[0, 0] += 0.1 * torch.randn((), generator=torch.Generator().manual_seed(SEED), dtype=W.dtype)
    side = torch.linspace(0, 1, resolution, dtype=W.dtype)
    second, first = torch.meshgrid(side, side, indexing="ij")
    x = torch.stack([first, second], -1)
    for _ in range(horizon):
        x = torch.sigmoid(beta * (x @ W))
    return 0.5 * (1 - x).square().sum(-1)


def summary(quiet: Attractor, noisy: Attractor, betas: Tensor, curves: dict[str, Tensor]) -> list[chaotic_rnn.Row]:
    """A row for each beta shown: attractor, and size of the gradients within 0.1 of it."""
    rows = []
    for beta in SHOWN:
        index = int((quiet.betas - beta).abs().argmin())
        near = (betas - beta).abs() <= 0.1 + 1e-9
        rows.append(
            {
                "beta": beta,
                "period": quiet.period(index),
                "exponent": quiet.exponents[index].item(),
                "exponent with noise": noisy.exponents[index].item(),
                "size": {name: draws[near].square().mean().sqrt().item() for name, draws in curves.items()},
            }
        )
    return rows


def tabulate(rows: Sequence[chaotic_rnn.Row], horizon: int, batch: int) -> Table:
    """One line for every beta shown."""
    table = Table(
        title=f"Chaotic RNN. Gradients: H = {horizon}, batch {batch}, one seed, root mean square within 0.1 of beta"
    )
    for column in ("beta", "states", "exponent", "with noise", *(f"gradient by {name}" for name in ESTIMATORS)):
        table.add_column(column, justify="right")
    for row in rows:
        states = str(row["period"]) if row["period"] < MANY else f"over {MANY}"
        exponents = [f"{row[name]:+.2f}" for name in ("exponent", "exponent with noise")]
        table.add_row(f"{row['beta']:g}", states, *exponents, *(f"{size:.2g}" for size in row["size"].values()))
    return table


def plot(quiet: Attractor, betas: Tensor, curves: dict[str, Tensor], surface: Tensor, path: Path) -> None:
    """The three panels of the figure."""
    figure = Figure(figsize=(13, 4), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    left.plot(quiet.betas, quiet.states[::5].T, ",", color="black", alpha=0.5)
    left.set(title="(a) attractor without noise", xlabel="beta", ylabel="first neuron")
    for name, draws in curves.items():
        middle.plot(betas, draws, linewidth=0.8, label=name)
    middle.set_yscale("symlog", linthresh=1)
    middle.set(title="(b) gradient, one seed", xlabel="beta")
    middle.legend()
    image = right.imshow(surface, origin="lower", extent=(0, 1, 0, 1), cmap="magma")
    right.set(title="(c) loss after 15 steps", xlabel="first neuron at the start", ylabel="second neuron at the start")
    figure.colorbar(image, ax=right)
    figure.savefig(path, dpi=100)


def main(argv: Sequence[str] | None = None) -> None:
    """Compute the three panels, tabulate, plot."""
    args = report.parser("proppo/landscape", __doc__).parse_args(argv)
    steps, points, horizon, batch, resolution = (1000, 31, 10, 200, 50) if args.smoke else (10_000, 301, 100, 1000, 500)
    args.out.mkdir(parents=True, exist_ok=True)

    fine = torch.linspace(1, 4, 4 * (points - 1) + 1, dtype=torch.float64)
    quiet, noisy = (attractor(fine, steps, kept=500, noise=noise) for noise in (0.0, 0.001))
    betas = torch.linspace(1, 4, points, dtype=torch.float64)
    curves = gradient_curves(betas, horizon, batch)
    rows = summary(quiet, noisy, betas, curves)
    report.show(tabulate(rows, horizon, batch), args.out)
    report.write_results(rows, args.out)
    plot(quiet, betas, curves, loss_surface(resolution), args.out / "landscape.png")
    print(f"Table and plot are in {args.out}")


if __name__ == "__main__":
    main()
