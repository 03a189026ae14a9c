"""Difference target propagation: every layer learns to reach a target that the layer above has sent.

The node at a layer's values keeps an inverse of its layer in `node.state`. Forward, it sends its values to the next
node, which needs them to learn its inverse. In the reverse pass it sends the layer below a target: the layer's
values, moved by as much as the inverse moves when the own values move to the own target. What goes on to the layer's
weights is the gradient of the distance to the target, so no error passes more than one layer. The last hidden layer
takes its target from the loss, a step against the cotangent that reaches it.

Layers and inverses have an optimizer each: `network.layers.parameters()` and `network.estimator_parameters()`.

Lee et al., "Difference target propagation", ECML PKDD 2015.

Run it: `python examples/messages/target_propagation.py`, options: `--help`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from matplotlib.figure import Figure
from rich.table import Table
from shared import Digits, accuracy, batches, digits, parser, show, write_graph, write_results
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss
from tqdm import tqdm

import propc

RULES = {"bp": "backprop", "dtp": "difference target propagation", "fixed": "hidden layers stay as they are"}
BELOW = propc.Field("below", shape=("batch", None))  # values of the layer below, sent forward
GOAL = propc.Field("goal", shape=("batch", None))  # target of the layer below, sent back

Row = dict[str, Any]


@dataclass(frozen=True)
class Target(propc.Propagator):
    """At a hidden layer's values: receives a target, sends one on.

    Attributes:
        below: units of the hidden layer below; None at the first one, which needs no inverse.
        step: how far the loss moves the values of the last hidden layer.
    """

    below: int | None
    step: float

    sends = (BELOW, GOAL)

    def state(self, node: propc.NodeView) -> nn.Module | None:
        return nn.Sequential(nn.Linear(node.value.shape[-1], self.below), nn.Tanh()) if self.below else None

    def forward(self, node: propc.NodeView, message: propc.Message) -> propc.Message:
        node.memory.below = message.get("below")
        return propc.Message(below=node.value)

    def backward(self, node: propc.NodeView, message: propc.Message) -> propc.Message:
        values, rows = node.value, len(node.value)
        target = message.get("goal", values - self.step * rows * message.grad)
        toward = propc.Message(grad=(values - target) / rows)
        if self.below is None:
            return toward
        below, inverse = node.memory.below, node.state
        with torch.enable_grad():
            node.memory.miss = mse_loss(inverse(values), below)
            node.memory.miss.backward()
        return toward.replace(goal=below + inverse(target) - inverse(values))


@propc.compile
class Network(nn.Module):
    """A multilayer perceptron; returns the loss of each image."""

    def __init__(self, widths: Sequence[int], step: float = 0.5) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(n, m) for n, m in pairwise(widths))
        self.step = step

    def logits(self, images: Tensor, rule: str = "bp") -> Tensor:
        """The last layer's sums, [batch, 10]."""
        *hidden, last = self.layers
        x = images
        for i, layer in enumerate(hidden):
            target = Target(layer.in_features if i else None, self.step)
            x = propc.node(torch.tanh(layer(x)), f"hidden{i}", {"dtp": target, "fixed": "detach"}.get(rule))
        return last(x)

    def forward(self, images: Tensor, labels: Tensor, rule: str = "bp") -> Tensor:
        return cross_entropy(self.logits(images, rule), labels, reduction="none")


def misses(network: Network, images: Tensor, labels: Tensor) -> list[float]:
    """Mean squared errors of the inverses, for each hidden layer above the first."""
    passed = network.propagate("backward", None, images, labels, "dtp")
    return [passed[f"hidden{i}"].memory.miss.item() for i in range(1, len(network.layers) - 1)]


def train(rule: str, data: Digits, widths: Sequence[int], epochs: int, seed: int = 0) -> Row:
    """Train by one rule; returns accuracy and errors of the inverses before and after every epoch."""
    torch.manual_seed(seed)
    network = Network(widths)
    if rule == "dtp":
        misses(network, data.images, data.labels)  # the inverses are made in the first reverse pass
    optimizers = [torch.optim.Adam(network.layers.parameters(), lr=1e-3)]
    inverses = list(network.estimator_parameters())
    if inverses:
        optimizers.append(torch.optim.Adam(inverses, lr=1e-3))
    row: Row = {"rule": rule, "accuracy": [], "misses": []}
    start = perf_counter()
    for epoch in tqdm(range(epochs + 1), desc=f"train {rule}"):
        row["accuracy"].append(accuracy(network.logits, data.test_images, data.test_labels))
        if rule == "dtp":
            row["misses"].append(misses(network, data.images, data.labels))
        for images, labels in batches(data, 32) if epoch < epochs else ():
            network.zero_grad()
            network(images, labels, rule).mean().backward()
            for optimizer in optimizers:
                optimizer.step()
    row["train_accuracy"] = accuracy(network.logits, data.images, data.labels)
    row["seconds"] = perf_counter() - start
    return row


def plot(rows: Sequence[Row], path: Path) -> None:
    """Draw the accuracy and the errors of the inverses over the epochs."""
    figure = Figure(figsize=(10, 3.8), layout="constrained")
    score, miss = figure.subplots(1, 2)
    for row in rows:
        score.plot(row["accuracy"], label=RULES[row["rule"]])
        for i, layer in enumerate(zip(*row["misses"])):
            miss.plot(layer, label=f"of layer {i + 1}")
    score.set(title="test accuracy", ylim=(0.8, 1.0))
    miss.set(title="mean squared error of the inverses", yscale="log")
    for axes in (score, miss):
        axes.set_xlabel("epoch")
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(path, dpi=120)


def tabulate(rows: Sequence[Row]) -> Table:
    """One line for every rule."""
    table = Table(title="Digits of scikit-learn, targets instead of gradients")
    for heading in ("rule", "train\nacc.", "test\nacc.", "error of inverses\nbefore", "after", "seconds"):
        table.add_column(heading, justify="right")
    for row in rows:
        ends = [", ".join(f"{miss:.3f}" for miss in row["misses"][i]) if row["misses"] else "" for i in (0, -1)]
        cells = f"{row['train_accuracy']:.3f}", f"{row['accuracy'][-1]:.3f}", *ends, f"{row['seconds']:.1f}"
        table.add_row(RULES[row["rule"]], *cells)
    return table


def main(argv: Sequence[str] | None = None) -> None:
    """Train by every rule, tabulate, plot, and write the graph."""
    options = parser("target_propagation", __doc__)
    options.add_argument("--hidden", type=int, nargs="+", default=[128, 64], help="widths of the hidden layers")
    options.add_argument("--epochs", type=int, default=30)
    args = options.parse_args(argv)
    epochs = 8 if args.smoke else args.epochs
    args.out.mkdir(parents=True, exist_ok=True)

    data, widths = digits(), [64, *args.hidden, 10]
    rows = [train(rule, data, widths, epochs) for rule in RULES]
    show(tabulate(rows), args.out)
    write_results(rows, args.out)
    plot(rows, args.out / "training.png")
    write_graph(Network(widths).graph(data.images[:32], data.labels[:32], "dtp"), args.out)
    print(f"Table, plot and graph are in {args.out}")


if __name__ == "__main__":
    main()
