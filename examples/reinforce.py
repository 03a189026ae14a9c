"""REINFORCE on Gymnasium's CartPole-v1: a policy learns from an environment that is a black box.

The environment is Gymnasium's own. It is stateful, and a black box must not be: when the program is traced, and when
its rows are checked, it runs more often than the program says. So its state goes in and comes out as a tensor.

The program returns the sum of all rewards, and propc takes it apart: every action hears only of the rewards after
it, less a baseline. What that is worth, the table says beside a program whose actions all hear of the whole return.
(Williams 1992, "Simple statistical gradient-following algorithms for connectionist reinforcement learning".)

Run it: `python examples/reinforce.py`, options: `--help`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import gymnasium
import torch
from matplotlib.figure import Figure
from report import parser, show, stem, write_graph, write_results
from rich.table import Table
from torch import Tensor, nn
from torch.distributions import Categorical
from tqdm import tqdm

import propc

NAME = "CartPole-v1"
LIMIT = 500  # steps after which CartPole-v1 ends an episode
SOLVED = 475  # mean return at which Gymnasium calls it solved
LEVEL = 0.8  # how soon a mean return is this share of the horizon, the table says
LAST = 10  # iterations over which the return at the end is averaged

Row = dict[str, Any]
Step = Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]


class Method(NamedTuple):
    """What is subtracted from a reward, and whether an action hears only of the rewards after it."""

    baseline: str | None
    split: bool = True


METHODS = {
    "loo": Method("loo"),
    "moving average": Method("moving_average"),
    "no baseline": Method(None),
    "loo, whole return": Method("loo", split=False),
}


@dataclass(frozen=True)
class Settings:
    """What `--help` lists."""

    methods: tuple[str, ...]
    seeds: int
    iterations: int
    batch: int
    horizon: int
    rate: float
    repeats: int
    out: Path


class CartPole:
    """A batch of Gymnasium's CartPole-v1, as a function of its state; it remembers nothing."""

    def __init__(self, batch: int) -> None:
        self.env: Any = gymnasium.make_vec(NAME, num_envs=batch, vectorization_mode="vector_entry_point")

    def reset(self) -> Tensor:
        """States where episodes begin, [batch, 4], governed by torch's seed."""
        self.env.reset(seed=int(torch.randint(2**31, ())))
        return torch.from_numpy(self.env.state.T.copy())

    @propc.opaque
    def step(self, state: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """One step from any states [batch, 4] by actions 0 or 1, [batch].

        Returns:
            the next states [batch, 4], the rewards [batch], and which poles fell or carts left, [batch].
        """
        self.env.state = state.numpy().T.copy()
        self.env.prev_done[:] = False  # what is over stays where it is, rather than beginning anew
        _, reward, terminated, *_ = self.env.step(action.numpy())
        after = torch.from_numpy(self.env.state.T.copy())
        return after, torch.from_numpy(reward.copy()), torch.from_numpy(terminated.copy())


class Policy(nn.Module):
    """Logits of the two actions, [batch, 2], at states [batch, 4]."""

    def __init__(self, hidden: int = 32) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, hidden), nn.Tanh(), nn.Linear(hidden, 2))

    def forward(self, state: Tensor) -> Tensor:
        return self.net(state.float())


@propc.compile(estimator="lr")
def episode(policy: Policy, step: Step, state: Tensor, horizon: int = LIMIT, split: bool = True) -> Tensor:
    """Minus the rewards of `horizon` steps, one value for each row; after its end a row earns and learns nothing.

    Without `split`, the return is a value of its own and not a sum: every action hears of all of it.
    """
    alive = torch.ones_like(state[:, 0], dtype=torch.bool)
    cost = torch.zeros_like(state[:, 0], dtype=torch.float32)
    for t in range(horizon):
        logits = torch.where(alive[:, None], policy(state), 0.0)
        action = propc.sample(Categorical(logits=logits), name=f"action{t}")
        state, reward, terminated = step(state, action)
        cost = cost - torch.where(alive, reward, 0.0)
        alive = alive & ~terminated
    return cost if split else propc.node(cost, "return")


def program(name: str) -> Any:
    """`episode` under a method's estimator."""
    return episode.with_estimator(propc.estimator("lr", baseline=METHODS[name].baseline))


def train(name: str, seed: int, settings: Settings) -> Row:
    """Learn by one method; returns the mean return of every iteration, and leaves the policy in a checkpoint."""
    torch.manual_seed(seed)  # the first policy and its first episodes are the same for all methods
    game, policy, cost, split = CartPole(settings.batch), Policy(), program(name), METHODS[name].split
    optimizer = torch.optim.Adam(policy.parameters(), lr=settings.rate)
    returns: list[float] = []
    start = perf_counter()
    for _ in (bar := tqdm(range(settings.iterations), desc=f"{name}, seed {seed}")):
        optimizer.zero_grad()
        loss = cost(policy, game.step, game.reset(), settings.horizon, split).mean()
        loss.backward()
        optimizer.step()
        returns.append(-loss.item())
        bar.set_postfix(episode=f"{returns[-1]:.0f}")
    seconds = perf_counter() - start
    torch.save(policy.state_dict(), settings.out / f"{stem(name)}-{seed}.pt")
    return {"method": name, "seed": seed, "returns": returns, "seconds": seconds, "played": play(policy, 10, seed)}


@torch.no_grad()
def play(policy: Policy, episodes: int, seed: int) -> float:
    """Mean return in the environment that `gymnasium.make` gives, without propc."""
    env, total = gymnasium.make(NAME), 0.0
    for number in range(episodes):
        state, _ = env.reset(seed=seed * episodes + number)
        over = False
        while not over:
            action = Categorical(logits=policy(torch.from_numpy(state))).sample()
            state, reward, terminated, truncated, _ = env.step(action.item())
            total, over = total + float(reward), terminated or truncated
    return total / episodes


def gradient_variance(name: str, settings: Settings) -> float:
    """Variance of the gradient of the mean cost at the first policy, summed over its parameters."""
    torch.manual_seed(0)
    game, policy, cost, split = CartPole(settings.batch), Policy(), program(name), METHODS[name].split
    draws = []
    for _ in tqdm(range(settings.repeats), desc=f"variance, {name}"):
        loss = cost(policy, game.step, game.reset(), min(settings.horizon, 100), split).mean()
        draws.append(torch.cat([part.flatten() for part in torch.autograd.grad(loss, list(policy.parameters()))]))
    return torch.stack(draws).var(0).sum().item()


def reached(returns: Sequence[float], level: float) -> int | None:
    """The first iteration whose mean return is this high."""
    return next((i for i, value in enumerate(returns) if value >= level), None)


def tabulate(runs: Sequence[Row], variances: dict[str, float], settings: Settings) -> Table:
    """One line for every run."""
    table = Table(title=f"{NAME}, {settings.batch} episodes an iteration, {settings.horizon} steps at most")
    level = round(LEVEL * settings.horizon)
    headings = ("baseline", "gradient\nvariance", "seed", f"iterations\nto {level}", "last\nreturns")
    for heading in (*headings, "played", "seconds"):
        table.add_column(heading, justify="right")
    for run in runs:
        first = run["seed"] == 0
        last = run["returns"][-LAST:]
        soon = reached(run["returns"], level)
        table.add_row(
            run["method"] if first else "",
            f"{variances[run['method']]:.3g}" if first else "",
            str(run["seed"]),
            "-" if soon is None else str(soon),
            f"{sum(last) / len(last):.0f}",
            f"{run['played']:.0f}",
            f"{run['seconds']:.0f}",
            end_section=run["seed"] == settings.seeds - 1,
        )
    return table


def plot(runs: Sequence[Row], path: Path) -> None:
    """Draw the returns over the iterations, a line for every run, a colour for every method."""
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    colours = {name: f"C{i}" for i, name in enumerate(dict.fromkeys(run["method"] for run in runs))}
    for run in runs:
        label = run["method"] if run["seed"] == 0 else None
        axes.plot(run["returns"], color=colours[run["method"]], linewidth=1, alpha=0.8, label=label)
    axes.axhline(SOLVED, color="grey", linewidth=0.8, linestyle="--")
    axes.set(title=f"REINFORCE on {NAME}", xlabel="iteration", ylabel="mean return")
    axes.grid(alpha=0.3)
    axes.legend(title="baseline")
    figure.savefig(path, dpi=110)


def read(argv: Sequence[str] | None) -> Settings:
    """The command line."""
    options = parser("reinforce", __doc__)
    options.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), help="baselines")
    options.add_argument("--seeds", type=int, default=2)
    options.add_argument("--iterations", type=int, default=100, help="gradient steps")
    options.add_argument("--batch", type=int, default=32, help="episodes an iteration")
    options.add_argument("--horizon", type=int, default=LIMIT, help="steps of an episode, at most")
    options.add_argument("--rate", type=float, default=0.01, help="Adam's step size")
    options.add_argument("--repeats", type=int, default=100, help="gradients per variance")
    args = vars(options.parse_args(argv))
    if args.pop("smoke"):
        args |= {"seeds": 1, "iterations": 20, "horizon": 60, "rate": 0.02, "repeats": 10}
    return Settings(**{**args, "methods": tuple(args["methods"])})


def main(argv: Sequence[str] | None = None) -> None:
    """Learn, measure, tabulate, plot, and write the graph."""
    settings = read(argv)
    settings.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)  # tensors are small
    variances = {name: gradient_variance(name, settings) for name in settings.methods}
    runs = [train(name, seed, settings) for name in settings.methods for seed in range(settings.seeds)]
    show(tabulate(runs, variances, settings), settings.out)
    write_results([{**run, "variance": variances[run["method"]]} for run in runs], settings.out)
    plot(runs, settings.out / "learning.png")
    game = CartPole(settings.batch)
    write_graph(episode.graph(Policy(), game.step, game.reset(), horizon=3), settings.out)
    print(f"Table, plot, graph and policies are in {settings.out}")


if __name__ == "__main__":
    main()
