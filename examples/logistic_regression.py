"""Bayesian logistic regression: one model, trained with three gradient estimators.

The posterior over the weights is a product of Normals. S draws from it are the leading batch
dimension, and the cost of a draw is its negative ELBO. To change the gradient estimator is to
change one argument. The data are the UCI breast cancer records shipped with scikit-learn.

Run it: `python examples/logistic_regression.py`, options: `--help`.
"""

from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import torch
from matplotlib.figure import Figure
from report import parser, show, write_graph, write_results
from rich.table import Table
from sklearn.datasets import load_breast_cancer
from sklearn.model_selection import train_test_split
from torch import Tensor
from torch.distributions import Independent, Normal, kl_divergence
from torch.nn.functional import binary_cross_entropy_with_logits
from tqdm import tqdm

import propc

ESTIMATORS = ("rp", "lr", "tp")

Row = dict[str, Any]


@propc.compile(estimator="rp")
def negative_elbo(loc: Tensor, log_scale: Tensor, features: Tensor, labels: Tensor, samples: int = 16) -> Tensor:
    """KL from the prior minus the log-likelihood, one value per posterior draw."""
    posterior = Independent(Normal(loc.expand(samples, -1), log_scale.exp().expand(samples, -1)), 1)
    prior = Independent(Normal(torch.zeros_like(loc), torch.ones_like(loc)), 1)
    weights = propc.sample(posterior, "weights")
    logits = weights @ features.T
    misfit = binary_cross_entropy_with_logits(logits, labels.expand_as(logits), reduction="none")
    return kl_divergence(posterior, prior) + misfit.sum(-1)


class Data(NamedTuple):
    """Standardized features with a last column of ones, and labels in {0, 1}."""

    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor


def load() -> Data:
    """Read, split and standardize the records."""
    features, labels = load_breast_cancer(return_X_y=True)
    split = train_test_split(features, labels, test_size=0.25, random_state=0, stratify=labels)
    train, test, train_labels, test_labels = (torch.as_tensor(part).double() for part in split)
    mean, std = train.mean(0), train.std(0)
    train, test = (torch.cat([(x - mean) / std, torch.ones_like(x[:, :1])], 1) for x in (train, test))
    return Data(train, train_labels, test, test_labels)


def accuracy(loc: Tensor, features: Tensor, labels: Tensor) -> float:
    """Accuracy at the posterior mean."""
    return ((features @ loc > 0) == (labels > 0.5)).double().mean().item()


def train(estimator: str, data: Data, steps: int) -> Row:
    """Fit the posterior by Adam; returns the curves and the parameters along the way."""
    cost = negative_elbo.with_estimator(estimator)
    loc = torch.zeros(data.train.shape[1], dtype=torch.float64, requires_grad=True)
    log_scale = torch.full_like(loc, -2.0).requires_grad_()
    optimizer = torch.optim.Adam([loc, log_scale], lr=0.02)
    run: Row = {"elbo": [], "test_accuracy": [], "path": []}
    start = perf_counter()
    for _ in tqdm(range(steps), desc=f"train {estimator}"):
        run["path"].append((loc.detach().clone(), log_scale.detach().clone()))
        optimizer.zero_grad()
        loss = cost(loc, log_scale, data.train, data.train_labels).mean()
        loss.backward()
        optimizer.step()
        run["elbo"].append(-loss.item())
        run["test_accuracy"].append(accuracy(loc.detach(), data.test, data.test_labels))
    run["seconds"] = perf_counter() - start
    run["train_accuracy"] = accuracy(loc.detach(), data.train, data.train_labels)
    return run


def gradient_variance(estimator: str, parameters: tuple[Tensor, Tensor], data: Data, repeats: int) -> float:
    """Variance of the gradient of the mean cost, summed over all coordinates."""
    cost = negative_elbo.with_estimator(estimator)
    leaves = [value.clone().requires_grad_() for value in parameters]
    gradients = []
    for _ in range(repeats):
        loss = cost(*leaves, data.train, data.train_labels).mean()
        gradients.append(torch.cat(torch.autograd.grad(loss, leaves)))
    return torch.stack(gradients).var(0).sum().item()


def plot(runs: dict[str, Row], checkpoints: list[int], path: Path) -> None:
    """Draw ELBO and accuracy over the training, and the variances along the path of rp."""
    figure = Figure(figsize=(13, 3.8), layout="constrained")
    elbo, score, variance = figure.subplots(1, 3)
    for name, run in runs.items():
        elbo.plot(run["elbo"], label=name, linewidth=1)
        score.plot(run["test_accuracy"], label=name, linewidth=1)
        variance.plot(checkpoints, run["variance"], "o-", label=name)
    elbo.set(title="ELBO", ylabel="nats", ylim=(-250, -40))
    score.set(title="accuracy on held-out data", ylabel="share", ylim=(0.85, 1.0))
    variance.set(title="gradient variance at the parameters of rp", ylabel="summed over coordinates", yscale="log")
    for axes in (elbo, score, variance):
        axes.set_xlabel("step")
        axes.grid(alpha=0.3)
    for axes in (elbo, variance):
        axes.legend()
    figure.savefig(path, dpi=120)


def tabulate(rows: list[Row]) -> Table:
    """One line for every estimator."""
    table = Table(title="Bayesian logistic regression, UCI breast cancer")
    columns = {
        "estimator": "{estimator}",
        "ELBO\nstart": "{elbo_start:.1f}",
        "ELBO\nend": "{elbo_end:.1f}",
        "train\nacc.": "{train_accuracy:.3f}",
        "test\nacc.": "{test_accuracy:.3f}",
        "variance\nstart": "{variance_start:.2g}",
        "variance\nend": "{variance_end:.2g}",
        "seconds": "{seconds:.1f}",
    }
    for heading in columns:
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(*(cell.format(**row) for cell in columns.values()))
    return table


def main(argv: Sequence[str] | None = None) -> None:
    """Train, measure, tabulate, plot, and write the graph."""
    options = parser("logistic_regression", __doc__)
    options.add_argument("--steps", type=int, default=1500, help="optimizer steps per estimator")
    options.add_argument("--repeats", type=int, default=200, help="gradients per variance")
    args = options.parse_args(argv)
    steps, repeats = (60, 10) if args.smoke else (args.steps, args.repeats)
    args.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)

    data = load()
    runs = {name: train(name, data, steps) for name in ESTIMATORS}

    path = runs["rp"]["path"]  # every estimator's variance is taken at the same parameters
    checkpoints = torch.linspace(0, steps - 1, 11).int().tolist()
    for name in tqdm(ESTIMATORS, desc="variance"):
        runs[name]["variance"] = [gradient_variance(name, path[step], data, repeats) for step in checkpoints]

    last = max(1, steps // 10)  # average the noisy ELBO over the last tenth of the steps
    rows = [
        {
            "estimator": name,
            "elbo_start": run["elbo"][0],
            "elbo_end": sum(run["elbo"][-last:]) / last,
            "train_accuracy": run["train_accuracy"],
            "test_accuracy": run["test_accuracy"][-1],
            "variance_start": run["variance"][0],
            "variance_end": run["variance"][-1],
            "seconds": run["seconds"],
        }
        for name, run in runs.items()
    ]
    show(tabulate(rows), args.out)
    write_results(rows, args.out)
    plot(runs, checkpoints, args.out / "training.png")
    parameters = [value.requires_grad_() for value in path[-1]]
    compiled = negative_elbo.with_estimator("tp")
    write_graph(compiled.graph(*parameters, data.train, data.train_labels), args.out)
    print(f"Table, plot and graph are in {args.out}")


if __name__ == "__main__":
    main()
