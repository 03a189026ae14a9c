"""TD(λ): eligibility traces are messages that a node keeps for the next step.

Prediction on the random walk with 19 states: start in the middle, step left or right, -1 at the left end, +1 at the
right end. The loss of a step is ½(target - value)². Its cotangent at the value is minus the TD error, which the node
there (`Value`) sends to the weights as a message of its own, and hands on 1 as cotangent: so ∇value arrives at the
weights. The node there (`Traces`) adds it to the trace that it has kept from the step before, and passes on
error × trace, the gradient of TD(λ). How much of the trace stays is told to it, forward, by a third node.
All methods and repetitions run as rows of one batch; training is `loss.backward()` and `torch.optim.SGD`.

Sutton and Barto, "Reinforcement Learning: An Introduction", second edition (2018), section 12.2; the error is that
of figure 12.6: root mean square over the states, mean over the first ten episodes and all repetitions.

Run it: `python examples/messages/td_lambda.py`, options: `--help`.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from rich.table import Table
from shared import parser, show, write_graph, write_results
from torch import Tensor
from torch.nn.functional import one_hot
from tqdm import tqdm

import propc

STATES = 19
TRUTH = torch.linspace(-1, 1, STATES + 2, dtype=torch.float64)[1:-1]
ERROR = propc.Field("error", shape=("batch",))  # cotangent on the value: minus the TD error, times the step size
DECAY = propc.Field("decay", shape=("batch",))  # share of the trace that stays: γλ, or 0 where an episode begins
TRACE = propc.Field("trace", shape=("batch", STATES))


@dataclass(frozen=True)
class Decay(propc.Propagator):
    """Tells the weights how much of the trace stays."""

    sends = (DECAY,)
    forward_targets = "weights"

    def forward(self, node: propc.NodeView, message: propc.Message) -> propc.Message:
        return propc.Message(decay=node.value)


@dataclass(frozen=True)
class Value(propc.Propagator):
    """At the value: the cotangent goes to the weights as it is, and 1 goes on in its place."""

    sends = (ERROR,)
    targets = "weights"

    def backward(self, node: propc.NodeView, message: propc.Message) -> propc.Message:
        return propc.Message(grad=torch.ones_like(message.grad), error=message.grad)


@dataclass(frozen=True)
class Traces(propc.Propagator):
    """At the weights: trace = decay × trace + ∇value, gradient = error × trace."""

    keeps = (TRACE,)

    def forward(self, node: propc.NodeView, message: propc.Message) -> None:
        node.memory.faded = message.decay[:, None] * message.get("trace", torch.zeros_like(node.value))

    def backward(self, node: propc.NodeView, message: propc.Message) -> list[propc.Message]:
        trace = node.memory.faded + message.grad
        return [propc.Message(grad=message.error[:, None] * trace), propc.Message(trace=trace).to(propc.SELF)]


def td_loss(weights: Tensor, decay: Tensor, now: Tensor, then: Tensor, reward: Tensor) -> Tensor:
    """Half the squared TD error of a step, [batch].

    Args:
        weights: of a linear value, [batch, 19].
        decay: share of the trace that stays, [batch].
        now: features of the state, [batch, 19].
        then: features of the next one, [batch, 19]; zeros at an end.
        reward: of the step, [batch].
    """
    propc.node(decay, "decay", Decay())
    weights = propc.node(weights, "weights", Traces())
    value = propc.node((weights * now).sum(-1), "value", Value())
    target = reward + (weights.detach() * then).sum(-1)
    return 0.5 * (target - value).square()


@dataclass(frozen=True)
class Steps:
    """One step of every walk; each tensor is [walks].

    Attributes:
        state: where it is.
        after: where it goes, -1 or 19 at an end.
        first: whether an episode begins.
        active: whether the walk still has episodes to go.
    """

    state: Tensor
    after: Tensor
    first: Tensor
    active: Tensor

    @property
    def ended(self) -> Tensor:
        """Whether the step ends an episode that counts."""
        return self.active & ((self.after < 0) | (self.after == STATES))

    @property
    def reward(self) -> Tensor:
        """-1 at the left end, 1 at the right end, else 0."""
        return (self.after == STATES).double() - (self.after < 0).double()

    @property
    def features(self) -> tuple[Tensor, Tensor]:
        """Of the state and of the next one, [walks, 19]; zeros at an end."""
        return features(self.state), features(self.after)


def features(states: Tensor) -> Tensor:
    """One of 19 for each state, zeros outside."""
    return one_hot(states + 1, STATES + 2)[:, 1:-1].double()


def walk(walks: int, episodes: int) -> Iterator[Steps]:
    """Step many walks at once until each has gone through its episodes."""
    state, first = torch.full((walks,), STATES // 2), torch.ones(walks, dtype=torch.bool)
    left = torch.full((walks,), episodes)
    while left.any():
        steps = Steps(state, state + 2 * torch.randint(2, (walks,)) - 1, first, left > 0)
        yield steps
        left, first = left - steps.ended.long(), (steps.after < 0) | (steps.after == STATES)
        state = torch.where(first, STATES // 2, steps.after)


def learn(lambdas: Tensor, sizes: Tensor, journey: Iterable[Steps], walks: int) -> tuple[Tensor, Tensor]:
    """TD(λ) by several methods on the same walks.

    Args:
        lambdas: λ of each method, [methods].
        sizes: step size of each method, [methods].
        journey: the walks, step by step.
        walks: how many there are.

    Returns:
        the weights at the end, [methods, walks, 19], and the errors, mean over the episodes, [methods, walks].
    """
    methods = len(lambdas)
    program = propc.compile(td_loss, validate=False)  # where the step size is too large, values may overflow
    weights = torch.zeros(methods * walks, STATES, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.SGD([weights], lr=1.0)
    errors, episodes = torch.zeros(methods, walks, dtype=torch.float64), torch.zeros(walks)
    for steps in journey:
        decay = torch.where(steps.first, 0.0, lambdas[:, None]).flatten()
        size = torch.where(steps.active, sizes[:, None], 0.0).flatten()
        now, then = (x.repeat(methods, 1) for x in steps.features)
        optimizer.zero_grad()
        (size * program(weights, decay, now, then, steps.reward.repeat(methods))).sum().backward()
        optimizer.step()
        found = (weights.detach() - TRUTH).square().mean(-1).sqrt().view(methods, walks)
        errors, episodes = torch.where(steps.ended, errors + found, errors), episodes + steps.ended
    return weights.detach().view(methods, walks, STATES), errors / episodes


def plot(errors: Tensor, lambdas: Sequence[float], sizes: Sequence[float], path: Path) -> None:
    """Draw the errors over the step size, a line for each λ."""
    figure = Figure(figsize=(6.5, 4.5), layout="constrained")
    axes = figure.subplots()
    for decay, line in zip(lambdas, errors.tolist()):
        axes.plot(sizes, [e if math.isfinite(e) else math.nan for e in line], "o-", markersize=3, label=f"λ = {decay}")
    axes.set(title="19-state random walk, TD(λ)", xlabel="step size", ylabel="RMS error, first episodes")
    axes.set_ylim(0.2, 0.6)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)


def tabulate(rows: Sequence[dict[str, Any]]) -> Table:
    """One line for every λ."""
    table = Table(title="19-state random walk: the best step size of each λ")
    for heading in ("λ", "step size", "RMS error", "standard error"):
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(f"{row['lambda']}", f"{row['size']}", f"{row['error']:.3f}", f"{row['stderr']:.3f}")
    return table


def main(argv: Sequence[str] | None = None) -> None:
    """Learn by every λ and step size, tabulate, plot, and write the graph."""
    options = parser("td_lambda", __doc__)
    options.add_argument("--walks", type=int, default=50, help="repetitions")
    options.add_argument("--episodes", type=int, default=10)
    options.add_argument("--lambdas", type=float, nargs="+", default=[0.0, 0.4, 0.8, 0.9, 0.95, 1.0])
    args = options.parse_args(argv)
    walks, episodes = (20, 10) if args.smoke else (args.walks, args.episodes)
    args.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)

    sizes = [0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0]
    grid = torch.cartesian_prod(*(torch.tensor(x, dtype=torch.float64) for x in (args.lambdas, sizes)))
    journey = tqdm(walk(walks, episodes), desc="steps")
    _, found = learn(grid[:, 0], grid[:, 1], journey, walks)
    found = found.view(len(args.lambdas), len(sizes), walks)
    mean, stderr = found.mean(-1), found.std(-1) / math.sqrt(walks)
    best = mean.nan_to_num(math.inf).argmin(1).tolist()
    rows = [
        {"lambda": decay, "size": sizes[j], "error": mean[i, j].item(), "stderr": stderr[i, j].item()}
        for i, (decay, j) in enumerate(zip(args.lambdas, best))
    ]
    show(tabulate(rows), args.out)
    write_results(rows, args.out)
    plot(mean, args.lambdas, sizes, args.out / "errors.png")
    one = features(torch.tensor([STATES // 2]))
    number = torch.ones(1, dtype=torch.float64)
    weights = torch.zeros_like(one).requires_grad_()
    write_graph(propc.compile(td_loss).graph(weights, number, one, one, number), args.out)
    print(f"Table, plot and graph are in {args.out}")


if __name__ == "__main__":
    main()
