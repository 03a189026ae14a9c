"""Toy expectations with exact gradients: how noisy is each estimator, and where?

Under a Normal, the means of (x - k)², exp(-k x²) and cos(k x) have closed forms, and so have their gradients in loc
and scale. k decides which estimator is the best: the pathwise one (rp) follows the slope of the cost, which grows
with k; the score function (lr) only its size (Mohamed, Rosca, Figurnov & Mnih 2020, "Monte Carlo gradient
estimation in machine learning", section 3). Under a Bernoulli, E[(b - 0.499)²] is nearly flat in the logit, and a
noisy gradient hardly finds its way down, nor does a biased one (Grathwohl et al. 2018, "Backpropagation through the
void").

Run it: `python examples/toys.py`, options: `--help`.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import torch
from matplotlib import colormaps
from matplotlib.figure import Figure
from report import parser, show, write_graph, write_results
from rich.table import Table
from torch import Tensor
from torch.distributions import Bernoulli, Normal
from tqdm import tqdm

import propc

NORMAL = {
    "lr, no baseline": propc.estimator("lr", baseline=None),
    "lr": "lr",
    "rloo, 2 draws": propc.estimator("rloo", samples=2),
    "rp": "rp",
    "tp": "tp",
    "mvd": "mvd",
}
BERNOULLI = {
    "lr, no baseline": propc.estimator("lr", baseline=None),
    "lr": "lr",
    "rloo, 4 draws": propc.estimator("rloo", samples=4),
    "arm": "arm",
    "disarm": "disarm",
    "local": "local",
    "enumerate": "enumerate",
    "gumbel_softmax": "gumbel_softmax",
    "st": "st",
    "st_gumbel": "st_gumbel",
    "gumbel_rao": "gumbel_rao",
    "reinmax": "reinmax",
}
BIASED = ("gumbel_softmax", "st", "st_gumbel", "gumbel_rao")  # reinmax is not, where the cost is quadratic
LOC = SCALE = 1.0
TARGET = 0.499
NONE = 1e-20  # a variance as small is rounding

Row = dict[str, Any]
Program = Callable[..., Tensor]


class Toy(NamedTuple):
    """A cost of x and k, its mean under Normal(loc, scale), and the values of k that are tried."""

    cost: Callable[[Tensor, Tensor], Tensor]
    expected: Callable[[Tensor, Tensor, Tensor], Tensor]
    ks: Tensor


def expected_square(loc: Tensor, scale: Tensor, k: Tensor) -> Tensor:
    """E (x - k)²."""
    return (loc - k).square() + scale.square()


def expected_bell(loc: Tensor, scale: Tensor, k: Tensor) -> Tensor:
    """E exp(-k x²)."""
    wide = 1 + 2 * k * scale.square()
    return (-k * loc.square() / wide).exp() / wide.sqrt()


def expected_wave(loc: Tensor, scale: Tensor, k: Tensor) -> Tensor:
    """E cos(k x)."""
    return (-(k * scale).square() / 2).exp() * (k * loc).cos()


TOYS = {
    "(x - k)²": Toy(lambda x, k: (x - k).square(), expected_square, torch.linspace(-3, 3, 13, dtype=torch.float64)),
    "exp(-k x²)": Toy(
        lambda x, k: (-k * x.square()).exp(), expected_bell, torch.logspace(-1, 1, 13, dtype=torch.float64)
    ),
    "cos(k x)": Toy(lambda x, k: (k * x).cos(), expected_wave, torch.logspace(-1, 1, 13, dtype=torch.float64)),
}
FLAT = f"(b - {TARGET})²"


@propc.compile
def normal(loc: Tensor, scale: Tensor, k: Tensor, toy: str) -> Tensor:
    """The cost of one draw for each row, [batch]; so are loc and scale."""
    return TOYS[toy].cost(propc.sample(Normal(loc, scale), "x"), k)


@propc.compile
def bernoulli(logit: Tensor) -> Tensor:
    """The cost of one draw for each row, [batch]; so is the logit."""
    return (propc.sample(Bernoulli(logits=logit), "b") - TARGET).square()


def expected_flat(logit: Tensor) -> Tensor:
    """E (b - 0.499)²."""
    return torch.sigmoid(logit) * (1 - 2 * TARGET) + TARGET**2


def gradients(program: Program, values: Sequence[float], draws: int) -> Tensor:
    """Independent estimates of the gradient, [draws, parameters]: every row has parameters of its own."""
    leaves = [torch.full((draws,), value, dtype=torch.float64, requires_grad=True) for value in values]
    return torch.stack(torch.autograd.grad(program(*leaves).sum(), leaves), -1)


def exact(expected: Program, values: Sequence[float]) -> list[float]:
    """The gradient of the mean in each parameter."""
    leaves = [torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in values]
    return [part.item() for part in torch.autograd.grad(expected(*leaves), leaves)]


def rows_of(estimates: Tensor, truth: Sequence[float], names: Sequence[str], **known: Any) -> Iterator[Row]:
    """Mean, standard error and variance of the estimates in each parameter."""
    for draws, true, name in zip(estimates.unbind(-1), truth, names):
        mean, variance = draws.mean().item(), draws.var().item()
        stderr = (variance / len(draws)) ** 0.5
        yield {**known, "in": name, "exact": true, "mean": mean, "stderr": stderr, "variance": variance}


def measure_normal(draws: int) -> list[Row]:
    """Every estimator on every toy at every k."""
    found = []
    for label, choice in tqdm(NORMAL.items(), desc="normal"):
        program = normal.with_estimator(choice)
        for name, toy in TOYS.items():
            for k in toy.ks:
                estimates = gradients(lambda loc, scale: program(loc, scale, k, name), (LOC, SCALE), draws)  # noqa: B023
                truth = exact(lambda loc, scale: toy.expected(loc, scale, k), (LOC, SCALE))  # noqa: B023
                found += rows_of(estimates, truth, ("loc", "scale"), toy=name, at=k.item(), estimator=label)
    return found


def measure_bernoulli(draws: int) -> list[Row]:
    """Every estimator at logits on both sides of 0."""
    found = []
    for label, choice in tqdm(BERNOULLI.items(), desc="bernoulli"):
        program = bernoulli.with_estimator(choice)
        for at in torch.linspace(-3, 3, 13).tolist():
            estimates, truth = gradients(program, [at], draws), exact(expected_flat, [at])
            found += rows_of(estimates, truth, ["logit"], toy=FLAT, at=at, estimator=label)
    return found


def descend(choice: Any, steps: int, runs: int, description: str) -> Tensor:
    """P(b = 1) after every step of Adam, [steps, runs]: each row is a run of its own, with one draw a step."""
    program = bernoulli.with_estimator(choice)
    logit = torch.zeros(runs, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([logit], lr=0.01)
    path = []
    for _ in tqdm(range(steps), desc=description):
        path.append(torch.sigmoid(logit.detach()))
        optimizer.zero_grad()
        program(logit).sum().backward()
        optimizer.step()
    return torch.stack(path)


def deviation(row: Row) -> float:
    """How far the mean is from the exact gradient, in standard errors; 0 where both are the same to rounding."""
    gap = row["mean"] - row["exact"]
    return 0.0 if abs(gap) < 1e-9 else gap / max(row["stderr"], 1e-9)


def tabulate(rows: Sequence[Row], ends: dict[str, float], draws: int) -> Table:
    """One line for every toy, parameter and estimator: variances at both ends and in the middle, and the worst mean."""
    table = Table(title=f"Gradients of toy expectations, {draws} estimates each")
    variances = (f"variance,\n{place}" for place in ("first", "middle", "last"))
    for heading in ("toy", "in", "estimator", *variances, "worst\n|z|", "P(b=1),\nend"):
        table.add_column(heading, justify="right")
    by_panel = sorted(rows, key=panel_of)
    for panel, of_panel in groupby(by_panel, panel_of):
        by_estimator = groupby(of_panel, lambda row: row["estimator"])
        lines = {name: list(line) for name, line in by_estimator}
        for name, line in lines.items():
            ends_and_middle = (line[0], line[len(line) // 2], line[-1])
            table.add_row(
                *(panel[1:] if name == next(iter(lines)) else ("", "")),
                name,
                *(f"{row['variance']:.2g}" for row in ends_and_middle),
                f"{max(abs(deviation(row)) for row in line):.1f}",
                f"{ends[name]:.3f}" if panel[1] == FLAT else "",
            )
        table.add_section()
    return table


def panel_of(row: Row) -> tuple[int, str, str]:
    """What is drawn and tabulated together, in order."""
    return [*TOYS, FLAT].index(row["toy"]), row["toy"], row["in"]


def colour(name: str, toy: str) -> Any:
    """An estimator's, the same in every panel of a picture."""
    return colormaps["tab20"](list(BERNOULLI).index(name)) if toy == FLAT else f"C{list(NORMAL).index(name)}"


def draw(axes: Any, rows: Sequence[Row], toy: str, parameter: str) -> None:
    """Variances of one toy's gradient in one parameter; dashed what they compete with, the squared exact gradient."""
    here = [row for row in rows if (row["toy"], row["in"]) == (toy, parameter)]
    for name in dict.fromkeys(row["estimator"] for row in here):
        line = [row for row in here if row["estimator"] == name]
        if any(row["variance"] > NONE for row in line):
            axes.plot([r["at"] for r in line], [r["variance"] for r in line], ".-", label=name, color=colour(name, toy))
    squares = {row["at"]: row["exact"] ** 2 for row in here}
    axes.plot(squares.keys(), squares.values(), "--", color="black", label="exact gradient, squared")
    seen = [row["variance"] for row in here if row["variance"] > NONE]
    axes.set(title=f"{toy}, in {parameter}", yscale="log", ylim=(min(seen) / 10, max(seen) * 3))
    axes.grid(alpha=0.3)


def plot_normal(rows: Sequence[Row], path: Path) -> None:
    """Variance over k, a panel for every toy and parameter."""
    figure = Figure(figsize=(15, 7), layout="constrained")
    for line, parameter in zip(figure.subplots(2, 3), ("loc", "scale")):
        for axes, (name, toy) in zip(line, TOYS.items()):
            draw(axes, rows, name, parameter)
            axes.set(xlabel="k", xscale="linear" if toy.ks[0] < 0 else "log")
    figure.axes[0].set_ylabel("variance of one estimate")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside right upper")
    figure.savefig(path, dpi=110)


def plot_bernoulli(rows: Sequence[Row], paths: dict[str, Tensor], path: Path) -> None:
    """Variance over the logit, and the way down: median of the runs, and between which values half of them are."""
    figure = Figure(figsize=(12, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    draw(left, rows, FLAT, "logit")
    left.set(xlabel="logit", ylabel="variance of one estimate")
    for name, found in paths.items():
        low, median, high = found.quantile(torch.tensor([0.25, 0.5, 0.75], dtype=found.dtype), dim=1)
        right.plot(median, label=name, color=colour(name, FLAT))
        right.fill_between(range(len(found)), low, high, alpha=0.2, color=colour(name, FLAT))
    right.set(title="Adam, one draw a step (the best is 0)", xlabel="step", ylabel="P(b = 1)", ylim=(0, 1))
    right.grid(alpha=0.3)
    figure.legend(*right.get_legend_handles_labels(), loc="outside right upper", title="dashed: exact, squared")
    figure.savefig(path, dpi=110)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, descend, tabulate, plot, and write the graph."""
    options = parser("toys", __doc__)
    options.add_argument("--draws", type=int, default=100_000, help="estimates for each variance")
    options.add_argument("--steps", type=int, default=10_000, help="of Adam, on the Bernoulli toy")
    options.add_argument("--runs", type=int, default=100, help="repetitions of the descent")
    args = options.parse_args(argv)
    draws, steps, runs = (20_000, 300, 20) if args.smoke else (args.draws, args.steps, args.runs)
    args.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)

    rows, flat = measure_normal(draws), measure_bernoulli(draws)
    paths = {label: descend(choice, steps, runs, f"descend, {label}") for label, choice in BERNOULLI.items()}
    ends = {label: found[-1].median().item() for label, found in paths.items()}
    show(tabulate([*rows, *flat], ends, draws), args.out)
    write_results([*rows, *flat, *({"estimator": label, "end": end} for label, end in ends.items())], args.out)
    plot_normal(rows, args.out / "normal.png")
    plot_bernoulli(flat, paths, args.out / "bernoulli.png")
    one = torch.ones(2, dtype=torch.float64, requires_grad=True)
    write_graph(normal.with_estimator("tp").graph(one, one, one.detach(), next(iter(TOYS))), args.out)
    print(f"Table, plots and graph are in {args.out}")


if __name__ == "__main__":
    main()
