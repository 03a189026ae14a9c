"""Hard attention: where to look is a choice, and all that comes back is whether the answer was right.

A small recurrent network sees three patches of 3 x 3 pixels of a digit, one after the other, and chooses each place
by what it has seen so far. Then it guesses. Places and guess are Categorical choices, the reward is 1 or 0, and no
derivative leads from one to the other: `propc.compile` brings the gradient, and another estimator is another argument
(Mnih, Heess, Graves & Kavukcuoglu 2014, "Recurrent models of visual attention").

Two baselines learn by the same reward: one looks at random places, one sees the whole digit.

Run it: `python examples/hard_attention.py`, options: `--help`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import torch
from digits import Digits, batches, digits
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from report import parser, show, stem, write_graph, write_results
from rich.table import Table
from torch import Tensor, nn
from torch.distributions import Categorical
from torch.nn.functional import one_hot, unfold
from tqdm import tqdm

import propc

SIDE = 8  # pixels of a digit
PATCH = 3  # pixels of a glimpse
ACROSS = SIDE - PATCH + 1
PLACES = ACROSS**2
GLIMPSES = 3
BATCH = 32
SHOWN = 10  # digits in the picture

ESTIMATORS = {
    "lr": "lr",
    "rloo, 2 draws": propc.estimator("rloo", samples=2),
    "guess enumerated": {"guess": "enumerate", "place*": "lr"},
    "guess enumerated, places local": {"guess": "enumerate", "place*": "local"},
}

Row = dict[str, Any]
Choose = Callable[[Tensor, str], Tensor]  # from log-probabilities [batch, n] and a name to a choice, [batch]


class Reading(NamedTuple):
    """What a reader makes of a batch of digits.

    Attributes:
        logits: of the classes, [batch, 10].
        places: of the glimpses, each [batch].
        entropy: of all choices, the guess included, [batch].
    """

    logits: Tensor
    places: tuple[Tensor, ...]
    entropy: Tensor


def entropy(log_p: Tensor) -> Tensor:
    """Of distributions over the last dimension."""
    return -(log_p.exp() * log_p).sum(-1)


class Glimpses(nn.Module):
    """Looks at some places of a digit, chosen one after the other, or at random."""

    def __init__(self, random: bool = False, hidden: int = 64) -> None:
        super().__init__()
        self.random = random
        self.start = nn.Parameter(torch.zeros(hidden))
        self.see = nn.Linear(PATCH**2 + PLACES, hidden)
        self.remember = nn.Linear(2 * hidden, 2 * hidden)
        self.where = nn.Linear(hidden, PLACES)
        self.what = nn.Sequential(nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, 10))

    def forward(self, images: Tensor, choose: Choose) -> Reading:
        patches = unfold(images.view(-1, 1, SIDE, SIDE), PATCH).transpose(1, 2)  # [batch, places, pixels]
        memory, places, doubt = self.start.expand(len(images), -1), [], torch.zeros(len(images))
        for t in range(GLIMPSES):
            log_p = self.where(memory).mul(0.0 if self.random else 1.0).log_softmax(-1)
            place = choose(log_p, f"place{t}")
            seen = patches.gather(1, place[:, None, None].expand(-1, 1, PATCH**2)).squeeze(1)
            glimpse = torch.tanh(self.see(torch.cat([seen, one_hot(place, PLACES)], -1)))
            gate, new = self.remember(torch.cat([memory, glimpse], -1)).chunk(2, -1)
            memory = torch.lerp(memory, torch.tanh(new), torch.sigmoid(gate))
            doubt = doubt + entropy(log_p)
            places.append(place)
        log_p = self.what(memory).log_softmax(-1)
        return Reading(log_p, tuple(places), doubt + entropy(log_p))


class Whole(nn.Module):
    """Sees all of a digit at once."""

    def __init__(self, hidden: int = 64) -> None:
        super().__init__()
        self.what = nn.Sequential(nn.Linear(SIDE**2, hidden), nn.ReLU(), nn.Linear(hidden, 10))

    def forward(self, images: Tensor, choose: Choose) -> Reading:
        log_p = self.what(images).log_softmax(-1)
        return Reading(log_p, (), entropy(log_p))


def draw(log_p: Tensor, name: str) -> Tensor:
    """A random choice, for learning."""
    return propc.sample(Categorical(logits=log_p), name)


def best(log_p: Tensor, name: str) -> Tensor:
    """The likeliest choice; a random one where all are alike."""
    likeliest = log_p.argmax(-1)
    alike = log_p.amax(-1) - log_p.amin(-1) < 1e-6
    return torch.where(alike, torch.randint_like(likeliest, log_p.shape[-1]), likeliest)


@propc.compile(estimator="lr")
def mistakes(reader: nn.Module, images: Tensor, labels: Tensor, curiosity: Tensor) -> Tensor:
    """1 for a wrong guess and 0 for a right one, less a bonus for entropy, [batch]: who never tries never learns."""
    reading = reader(images, draw)
    return (draw(reading.logits, "guess") != labels).float() - curiosity * reading.entropy


@dataclass(frozen=True)
class Learner:
    """A reader and how it learns."""

    label: str
    reader: Callable[[], nn.Module]
    estimator: Any


def learners(estimators: Sequence[str]) -> list[Learner]:
    """Glimpses under some of the estimators, and the two baselines."""
    return [
        *(Learner(f"chosen places, {name}", Glimpses, ESTIMATORS[name]) for name in estimators),
        Learner("random places, guess enumerated", lambda: Glimpses(random=True), {"guess": "enumerate"}),
        Learner("whole digit, guess enumerated", Whole, "enumerate"),
    ]


@torch.no_grad()
def accuracy(reader: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Share of right answers, by the likeliest choices."""
    return (reader(images, best).logits.argmax(-1) == labels).float().mean().item()


def train(learner: Learner, data: Digits, epochs: int, folder: Path) -> tuple[nn.Module, Row]:
    """Learn from rewards alone; the reader goes to a checkpoint too."""
    torch.manual_seed(0)
    reader, program = learner.reader(), mistakes.with_estimator(learner.estimator)
    optimizer = torch.optim.Adam(reader.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    scores: list[float] = []
    start = perf_counter()
    for epoch in (bar := tqdm(range(epochs), desc=learner.label)):
        scores.append(accuracy(reader, data.test_images, data.test_labels))
        bar.set_postfix(accuracy=f"{scores[-1]:.3f}")
        curiosity = torch.tensor(0.06 * (1 - epoch / epochs))
        for images, labels in batches(data, BATCH):
            optimizer.zero_grad()
            program(reader, images, labels, curiosity).mean().backward()
            optimizer.step()
        schedule.step()
    scores.append(accuracy(reader, data.test_images, data.test_labels))
    seconds = perf_counter() - start
    torch.save(reader.state_dict(), folder / f"{stem(learner.label)}.pt")
    trained = accuracy(reader, data.images, data.labels)
    return reader, {"learner": learner.label, "accuracy": scores, "train_accuracy": trained, "seconds": seconds}


def tabulate(rows: Sequence[Row]) -> Table:
    """One line for every learner."""
    table = Table(title=f"Digits of scikit-learn, {GLIMPSES} glimpses of {PATCH} x {PATCH} pixels, reward 0 or 1")
    for heading in ("learner", "train\nacc.", "test\nacc.", "seconds"):
        table.add_column(heading, justify="right")
    for row in rows:
        numbers = f"{row['train_accuracy']:.3f}", f"{row['accuracy'][-1]:.3f}", f"{row['seconds']:.1f}"
        table.add_row(row["learner"], *numbers)
    return table


def plot_training(rows: Sequence[Row], path: Path) -> None:
    """Draw the test accuracy over the epochs."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for row in rows:
        axes.plot(row["accuracy"], label=row["learner"], linewidth=1)
    axes.set(title="from rewards of 0 and 1", xlabel="epoch", ylabel="test accuracy", ylim=(0, 1))
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)


@torch.no_grad()
def plot_glimpses(reader: nn.Module, data: Digits, path: Path) -> None:
    """Draw where a reader looks: at one held-out digit of each class, and how often at each place, by glimpse."""
    reading = reader(data.test_images, best)
    figure = Figure(figsize=(13, 5), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=(1, 1.4))
    for digit, axes in enumerate(above.subplots(1, SHOWN)):
        row = int((data.test_labels == digit).nonzero()[0])
        axes.imshow(data.test_images[row].view(SIDE, SIDE), cmap="gray_r")
        for t, place in enumerate(reading.places):
            y, x = divmod(int(place[row]), ACROSS)
            axes.add_patch(Rectangle((x - 0.5, y - 0.5), PATCH, PATCH, fill=False, edgecolor=f"C{t}", linewidth=2))
            axes.text(x - 0.3, y + 0.3, str(t + 1), color=f"C{t}", fontsize="small")
        axes.set(title=f"says {int(reading.logits[row].argmax())}", xticks=[], yticks=[])
    for t, (axes, place) in enumerate(zip(below.subplots(1, GLIMPSES), reading.places)):
        often = torch.bincount(place, minlength=PLACES).view(ACROSS, ACROSS) / len(place)
        picture = axes.imshow(often, cmap="Blues", vmin=0)
        axes.set(title=f"glimpse {t + 1}: share of digits, by corner", xticks=[], yticks=[])
        below.colorbar(picture, ax=axes, shrink=0.8)
    figure.savefig(path, dpi=110)


def main(argv: Sequence[str] | None = None) -> None:
    """Learn, tabulate, plot, and write the graph."""
    options = parser("hard_attention", __doc__)
    options.add_argument("--epochs", type=int, default=150)
    options.add_argument("--estimators", nargs="+", choices=ESTIMATORS, default=list(ESTIMATORS))
    args = options.parse_args(argv)
    epochs = 25 if args.smoke else args.epochs
    args.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)  # tensors are small

    data = digits()
    readers, rows = zip(*(train(learner, data, epochs, args.out) for learner in learners(args.estimators)))
    show(tabulate(rows), args.out)
    write_results(rows, args.out)
    plot_training(rows, args.out / "training.png")
    plot_glimpses(readers[0], data, args.out / "glimpses.png")
    graph = mistakes.graph(readers[0], data.images[:BATCH], data.labels[:BATCH], torch.tensor(0.0))
    write_graph(graph, args.out)
    print(f"Table, plots, graph and readers are in {args.out}")


if __name__ == "__main__":
    main()
