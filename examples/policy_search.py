"""Policy search on a learned model: cart-pole swing-up with particles, one argument per estimator.

Each trial runs the policy once on the real system, fits a probabilistic model to all transitions
seen so far, and improves the policy by gradients through rollouts of the model. Such rollouts are
what total propagation was made for (Parmas, Rasmussen, Peters & Doya 2018, "PIPPS"): near the
upright pole they are chaotic, and the pathwise gradient explodes.

Run it: `python examples/policy_search.py`, options: `--help`.
"""

import itertools
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from cartpole import system
from cartpole.dynamics import Dynamics, Functions
from cartpole.policy import Policy, random_policy
from cartpole.system import Episodes
from matplotlib.figure import Figure
from report import parser, show, write_graph, write_results
from rich.table import Table
from torch import Tensor
from torch.distributions import Normal
from tqdm import tqdm

import propc

EPISODE = 50  # real steps, four seconds
RANDOM_EPISODES = 2  # before the first trial
FUNCTIONS = 30  # drawn from the model for each gradient; particles share them in equal groups
TESTS = 100  # real episodes that only measure the policy
ESTIMATORS = ["rp", "lr", "tp", "gs", "gs-tp"]
REFITTED = ("gs", "gs-tp", "gr")  # fit one Gaussian to a step's particles, which must be of one kind
LAST = 12  # steps, the last second
CAUGHT = 0.4  # m: an episode succeeds if in its last second the tip is this close to upright, on average

Row = dict[str, Any]


@dataclass(frozen=True)
class Settings:
    """What `--help` lists."""

    estimators: tuple[str, ...]
    seeds: int
    trials: int
    steps: int
    horizon: int
    particles: int
    rate: float
    clip: float
    visited: float
    repeats: int
    workers: int
    out: Path


@propc.compile(estimator="tp")
def rollout(policy: Policy, model: Functions, state: Tensor, horizon: int) -> Tensor:
    """The cost of `horizon` steps under the model, one value for each particle."""
    total = torch.zeros_like(state[:, 0])
    for t in range(1, horizon + 1):
        seen = system.observe(state)
        state = propc.sample(Normal(model(state, seen, policy(seen)), model.noise), name=f"x{t}")
        total = total + propc.cost(system.cost(state), name=f"cost{t}")
    return total


def particles(settings: Settings, data: Episodes) -> Tensor:
    """Where rollouts start, [particles, 4]: some at states of real episodes, the others where episodes start.

    From visited states the policy learns to hold the pole before it has learned to swing it up. Gaussian
    shaping fits one Gaussian to the whole batch, so it wants one kind of start: `--visited 0`.
    """
    states = data.states.flatten(0, 1)
    count = round(settings.visited * settings.particles)
    visited = states[torch.randint(len(states), (count,))]
    start = torch.cat([visited, system.start(settings.particles - count)])
    return start[torch.randperm(settings.particles)]  # every drawn function gets its share of both


def expected_cost(cost: Any, policy: Policy, model: Dynamics, data: Episodes, settings: Settings) -> Tensor:
    """Mean cost of fresh particles that follow freshly drawn functions; `cost` is `rollout` under an estimator."""
    start = particles(settings, data)
    return cost(policy, model.draw(FUNCTIONS), start, horizon=settings.horizon).mean()


def improve(cost: Any, policy: Policy, model: Dynamics, data: Episodes, settings: Settings) -> None:
    """Take `settings.steps` gradient steps through the model, the gradient's norm clipped."""
    optimizer = torch.optim.Adam(policy.parameters(), lr=settings.rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings.steps)
    for _ in range(settings.steps):
        optimizer.zero_grad()
        expected_cost(cost, policy, model, data, settings).backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), settings.clip)
        optimizer.step()
        schedule.step()


def join(episodes: Sequence[Episodes]) -> Episodes:
    """Episodes side by side."""
    return Episodes(*(torch.cat(parts, dim=1) for parts in zip(*episodes, strict=True)))


def measure(policy: Policy) -> Row:
    """Mean cost of a real episode, and the share of episodes that swing the pole up and hold it."""
    states = system.run(policy, TESTS, EPISODE).states[1:]
    last_second = system.tip_distance(states[-LAST:]).sqrt().mean(0)
    return {
        "cost": system.cost(states).sum(0).mean().item(),
        "caught": (last_second < CAUGHT).float().mean().item(),
    }


def learn(settings: Settings, estimator: str, seed: int) -> list[Row]:
    """All trials of one estimator from one seed; one row for each, the last policy in a checkpoint."""
    if estimator in REFITTED:
        settings = replace(settings, visited=0.0)
    torch.set_num_threads(1)
    torch.manual_seed(seed)  # the first episodes, the model's features and the first policy are the same for all
    policy, model = Policy(), Dynamics()
    data = join([system.run(random_policy, 1, EPISODE) for _ in range(RANDOM_EPISODES)])
    cost = rollout.with_estimator(estimator)
    rows = [{"estimator": estimator, "seed": seed, "trial": 0, **measure(policy)}]
    save(settings.out / f"{estimator}-{seed}-first.pt", policy, model, data)
    for trial in range(1, settings.trials + 1):
        model.fit(data)
        improve(cost, policy, model, data, settings)
        rows.append({"estimator": estimator, "seed": seed, "trial": trial, **measure(policy)})
        data = join([data, system.run(policy, 1, EPISODE)])
        save(settings.out / f"{estimator}-{seed}.pt", policy, model, data)
    return rows


def save(path: Path, policy: Policy, model: Dynamics, data: Episodes) -> None:
    """Write a checkpoint."""
    torch.save({"policy": policy.state_dict(), "model": model.state_dict(), "data": tuple(data)}, path)


def load(path: Path) -> tuple[Policy, Dynamics, Episodes]:
    """Read a checkpoint."""
    saved = torch.load(path)
    policy, model = Policy(), Dynamics()
    policy.load_state_dict(saved["policy"])
    model.load_state_dict(saved["model"])
    return policy, model, Episodes(*saved["data"])


def learn_all(settings: Settings) -> list[Row]:
    """Every estimator from every seed, side by side in worker processes."""
    jobs = [(settings, name, seed) for seed in range(settings.seeds) for name in settings.estimators]
    if settings.workers == 1:
        return list(itertools.chain.from_iterable(learn(*job) for job in tqdm(jobs, desc="learn")))
    with ProcessPoolExecutor(settings.workers, mp_context=get_context("spawn")) as pool:
        runs = [pool.submit(learn, *job) for job in jobs]
        for _ in tqdm(as_completed(runs), total=len(runs), desc="learn"):
            pass
    return list(itertools.chain.from_iterable(run.result() for run in runs))


def gradient_variance(settings: Settings, estimator: str, stage: str, horizons: Sequence[int]) -> list[Row]:
    """Variance of the gradient of the mean cost, summed over the policy's parameters, by horizon.

    `stage` is "first" or "trained": every estimator is measured at the same policy, under the model of the last
    trial of the checkpoint, on particles that start where episodes start.
    """
    torch.manual_seed(0)
    policy, model, data = load(checkpoint(settings))
    if stage == "first":
        policy, *_ = load(settings.out / f"{settings.estimators[0]}-0-first.pt")
    cost = rollout.with_estimator(estimator)
    rows = []
    for horizon in horizons:
        at = replace(settings, horizon=horizon, visited=0.0)
        draws = []
        for _ in range(settings.repeats):
            loss = expected_cost(cost, policy, model, data, at)
            gradient = torch.autograd.grad(loss, list(policy.parameters()))
            draws.append(torch.cat([part.flatten() for part in gradient]).double())
        variance = torch.stack(draws).var(0).sum().item()
        rows.append({"estimator": estimator, "stage": stage, "horizon": horizon, "variance": variance})
    return rows


def checkpoint(settings: Settings) -> Path:
    """The trained policy at which variances are taken: of tp, where it took part."""
    name = "tp" if "tp" in settings.estimators else settings.estimators[-1]
    return settings.out / f"{name}-0.pt"


def mean_and_error(values: Iterable[float]) -> tuple[float, float]:
    """Mean and standard error; the error of a single value is not known."""
    draws = torch.tensor(list(values), dtype=torch.float64)
    return draws.mean().item(), draws.std().item() / len(draws) ** 0.5 if len(draws) > 1 else float("nan")


def tabulate(trials: Sequence[Row], noise: Sequence[Row], settings: Settings) -> Table:
    """One line for every estimator: the real cost along the trials, and the variances at full horizon."""
    table = Table(title=f"Cart-pole swing-up: cost of a real episode of {EPISODE} steps, {settings.seeds} seeds")
    shown = sorted({0, 1, (settings.trials + 1) // 2, settings.trials})
    headings = [f"trial {trial}" for trial in shown]
    for heading in ("estimator", *headings, "caught", "variance\nfirst policy", "variance\ntrained policy"):
        table.add_column(heading, justify="right")
    for name in settings.estimators:
        runs = [row for row in trials if row["estimator"] == name]
        costs = [mean_and_error(row["cost"] for row in runs if row["trial"] == trial) for trial in shown]
        caught, _ = mean_and_error(row["caught"] for row in runs if row["trial"] == settings.trials)
        full = {r["stage"]: r["variance"] for r in noise if (r["estimator"], r["horizon"]) == (name, settings.horizon)}
        cells = [f"{mean:.1f} ± {error:.1f}" for mean, error in costs]
        table.add_row(name, *cells, f"{caught:.0%}", f"{full['first']:.2g}", f"{full['trained']:.2g}")
    return table


def plot(trials: Sequence[Row], noise: Sequence[Row], settings: Settings, path: Path) -> None:
    """Draw the real cost over the trials, and the gradient's variance over the horizon."""
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    learning, *variances = figure.subplots(1, 3)
    for name in settings.estimators:
        costs = [
            [r["cost"] for r in trials if (r["estimator"], r["trial"]) == (name, t)] for t in range(settings.trials + 1)
        ]
        mean, error = zip(*map(mean_and_error, costs), strict=True)
        learning.errorbar(range(len(costs)), mean, error, fmt=".-", capsize=2, label=name)
        for axes, stage in zip(variances, ("first", "trained"), strict=True):
            line = [r for r in noise if (r["estimator"], r["stage"]) == (name, stage)]
            axes.plot([r["horizon"] for r in line], [r["variance"] for r in line], ".-", label=name)
            axes.set(title=f"gradient variance, {stage} policy", xlabel="horizon", yscale="log")
    learning.set(title="cost of a real episode", xlabel="trial")
    learning.legend()
    for axes in figure.axes:
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=90)


def read(argv: Sequence[str] | None) -> Settings:
    """The command line."""
    options = parser("policy_search", __doc__)
    options.add_argument(
        "--estimators", nargs="+", default=["rp", "lr", "tp", "gs", "gs-tp"], help="any that propc knows"
    )
    options.add_argument("--seeds", type=int, default=2)
    options.add_argument("--trials", type=int, default=10, help="real episodes after the random ones")
    options.add_argument("--steps", type=int, default=150, help="gradient steps a trial")
    options.add_argument("--horizon", type=int, default=25, help="steps of a rollout of the model")
    options.add_argument("--particles", type=int, default=210, help=f"a multiple of {FUNCTIONS}")
    options.add_argument("--rate", type=float, default=0.03, help="Adam's step size, annealed in every trial")
    options.add_argument("--clip", type=float, default=1.0, help="largest norm of a gradient")
    options.add_argument("--visited", type=float, default=0.5, help="share of rollouts that start in mid-episode")
    options.add_argument("--repeats", type=int, default=20, help="gradients per variance")
    options.add_argument("--workers", type=int, default=2, help="processes")
    args = vars(options.parse_args(argv))
    if args.pop("smoke"):
        args |= {"seeds": 1, "trials": 1, "steps": 4, "horizon": 5, "particles": 60, "repeats": 5, "workers": 1}
    return Settings(**{**args, "estimators": tuple(args["estimators"])})


def main(argv: Sequence[str] | None = None) -> None:
    """Learn, measure, tabulate, plot, and write the graph."""
    settings = read(argv)
    settings.out.mkdir(parents=True, exist_ok=True)
    trials = learn_all(settings)
    horizons = sorted({*range(5, settings.horizon, 5), settings.horizon})
    cells = list(itertools.product(settings.estimators, ("first", "trained")))
    noise = [row for cell in tqdm(cells, desc="variance") for row in gradient_variance(settings, *cell, horizons)]
    show(tabulate(trials, noise, settings), settings.out)
    write_results([*trials, *noise], settings.out)
    plot(trials, noise, settings, settings.out / "learning.png")
    policy, model, data = load(checkpoint(settings))
    start = particles(settings, data)
    write_graph(rollout.graph(policy, model.draw(FUNCTIONS), start, horizon=3), settings.out)
    print(f"Table, plot, graph and policies are in {settings.out}")


if __name__ == "__main__":
    main()
