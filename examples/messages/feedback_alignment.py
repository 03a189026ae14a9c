"""Feedback alignment: the error reaches the layers below through fixed random weights.

Backprop multiplies the error at a layer's sums with the transpose of the layer's weights. Here the node at the
sums (`Tell`) sends the error itself, and the node at the values below (`Feedback`) multiplies it with random
weights that never change. Direct feedback alignment is another route: the output's sums tell every hidden layer.
To change the rule is to change one argument; training is `loss.backward()` and an ordinary optimizer.

Lillicrap et al., "Random synaptic feedback weights support error backpropagation for deep learning", Nature
Communications 7 (2016). Nøkland, "Direct feedback alignment provides learning in deep neural networks", NeurIPS 2016.

Run it: `python examples/messages/feedback_alignment.py`, options: `--help`.
"""

import math
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
from torch.nn.functional import cross_entropy
from tqdm import tqdm

import propc

RULES = {"bp": "backprop", "fa": "feedback alignment", "dfa": "direct feedback alignment"}
ERROR = propc.Field("error", shape=("batch", None))  # the cotangent on a layer's sums

Row = dict[str, Any]


@dataclass(frozen=True)
class Tell(propc.Propagator):
    """At a layer's sums: the cotangent goes on to the layer's weights, and as error to the targets."""

    sends = (ERROR,)
    targets: Any = propc.PARENTS

    def backward(self, node: propc.NodeView, message: propc.Message) -> propc.Message:
        return message.replace(error=message.grad)


@dataclass(frozen=True)
class Feedback(propc.Propagator):
    """At a hidden layer's values: the error through random weights takes the cotangent's place.

    Attributes:
        senders: number of units that tell their error.
    """

    senders: int

    def state(self, node: propc.NodeView) -> nn.Module:
        units = node.value.shape[-1]
        weights = nn.Module()
        weights.register_buffer("fixed", torch.randn(self.senders, units) / math.sqrt(units))
        return weights

    def backward(self, node: propc.NodeView, message: propc.Message) -> propc.Message:
        return propc.Message(grad=message.error @ node.state.fixed)


@propc.compile
class Network(nn.Module):
    """A multilayer perceptron; returns the loss of each image."""

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(n, m) for n, m in pairwise(widths))

    def logits(self, images: Tensor, rule: str = "bp") -> Tensor:
        """The last layer's sums, [batch, 10]; state goes by name, so that each rule has names of its own."""
        *hidden, last = self.layers
        x = images
        for i, layer in enumerate(hidden):
            sums, told_by = layer(x), last if rule == "dfa" else self.layers[i + 1]
            if rule == "fa" and i > 0:
                sums = propc.node(sums, f"{rule}.sums{i}", Tell())
            x = torch.tanh(sums)
            if rule != "bp":
                x = propc.node(x, f"{rule}.hidden{i}", Feedback(told_by.out_features))
        sums = last(x)
        if rule != "bp":
            sums = propc.node(sums, "logits", Tell("dfa.hidden*" if rule == "dfa" else propc.PARENTS))
        return sums

    def forward(self, images: Tensor, labels: Tensor, rule: str = "bp") -> Tensor:
        return cross_entropy(self.logits(images, rule), labels, reduction="none")


def gradients(network: Network, images: Tensor, labels: Tensor, rule: str) -> list[Tensor]:
    """Gradients at the weights of the hidden layers."""
    weights = [layer.weight for layer in network.layers[:-1]]
    return list(torch.autograd.grad(network(images, labels, rule).mean(), weights))


def angles(network: Network, images: Tensor, labels: Tensor, rule: str) -> list[float]:
    """Degrees between the gradients of a rule and of backprop, for each hidden layer."""
    pairs = zip(gradients(network, images, labels, rule), gradients(network, images, labels, "bp"))
    cosines = [torch.cosine_similarity(a.flatten(), b.flatten(), dim=0) for a, b in pairs]
    return [math.degrees(math.acos(max(-1.0, min(1.0, cosine.item())))) for cosine in cosines]


def train(rule: str, data: Digits, widths: Sequence[int], epochs: int, seed: int = 0) -> Row:
    """Train by one rule; returns accuracy and angles before and after every epoch."""
    torch.manual_seed(seed)
    network = Network(widths)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    row: Row = {"rule": rule, "accuracy": [], "angles": []}
    start = perf_counter()
    for epoch in tqdm(range(epochs + 1), desc=f"train {rule}"):
        row["accuracy"].append(accuracy(network.logits, data.test_images, data.test_labels))
        row["angles"].append(angles(network, data.images, data.labels, rule))
        for images, labels in batches(data, 32) if epoch < epochs else ():
            optimizer.zero_grad()
            network(images, labels, rule).mean().backward()
            optimizer.step()
    row["train_accuracy"] = accuracy(network.logits, data.images, data.labels)
    row["seconds"] = perf_counter() - start
    return row


def plot(rows: Sequence[Row], path: Path) -> None:
    """Draw accuracy and angles over the epochs."""
    figure = Figure(figsize=(10, 3.8), layout="constrained")
    score, angle = figure.subplots(1, 2)
    for colour, row in enumerate(rows):
        score.plot(row["accuracy"], label=RULES[row["rule"]], color=f"C{colour}")
        for i, layer in enumerate(zip(*row["angles"]) if row["rule"] != "bp" else ()):
            label = f"{RULES[row['rule']]}, layer {i}"
            angle.plot(layer, ("-", "--", ":")[i % 3], label=label, color=f"C{colour}")
    score.set(title="test accuracy", ylim=(0.8, 1.0))
    angle.set(title="angle to the gradient of backprop, degrees", ylim=(0, 100))
    angle.axhline(90, color="grey", linewidth=0.8)
    for axes in (score, angle):
        axes.set_xlabel("epoch")
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(path, dpi=120)


def tabulate(rows: Sequence[Row]) -> Table:
    """One line for every rule."""
    table = Table(title="Digits of scikit-learn, fixed random feedback")
    for heading in ("rule", "train\nacc.", "test\nacc.", "angles\nbefore", "angles\nafter", "seconds"):
        table.add_column(heading, justify="right")
    for row in rows:
        ends = [", ".join(f"{degrees:.0f}°" for degrees in row["angles"][i]) for i in (0, -1)]
        cells = f"{row['train_accuracy']:.3f}", f"{row['accuracy'][-1]:.3f}", *ends, f"{row['seconds']:.1f}"
        table.add_row(RULES[row["rule"]], *cells)
    return table


def main(argv: Sequence[str] | None = None) -> None:
    """Train by every rule, tabulate, plot, and write the graphs."""
    options = parser("feedback_alignment", __doc__)
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
    for rule in ("fa", "dfa"):
        write_graph(Network(widths).graph(data.images[:32], data.labels[:32], rule), args.out, f"graph_{rule}")
    print(f"Table, plot and graphs are in {args.out}")


if __name__ == "__main__":
    main()
