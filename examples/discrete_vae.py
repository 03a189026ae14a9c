"""A VAE with discrete latents, trained under many gradient estimators by changing one argument.

The latents are coins (Bernoulli), or with --categories dice (OneHotCategorical): autograd alone has no
gradient for the encoder. The images are scikit-learn's digits, or MNIST from a folder of its files.

An estimator is a name, with options behind a colon: lr, lr:baseline=None,...

Run it: `python examples/discrete_vae.py`, options: `--help`.
"""

import ast
import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import torch
from report import parser, show, write_graph, write_results
from rich.console import Group
from torch import Tensor
from tqdm import tqdm
from vae.bounds import multi_sample
from vae.data import Images, load
from vae.model import DiscreteVAE
from vae.pictures import gallery, plot
from vae.tables import bounds, for_markdown, for_terminal, gradients
from vae.training import Plan, Row, Run, train

import propc

ESTIMATORS = (
    "lr",
    "rloo:samples=4",
    "arm",
    "disarm",
    "local",
    "gumbel_softmax:temperature=0.5",
    "st",
    "st_gumbel",
    "gumbel_rao:samples=10",
    "reinmax",
    "vimco:samples=4",
)
REFERENCE = "local"  # unbiased, with little variance; what the means of all others are compared with


@dataclass(frozen=True)
class Settings:
    """What `--help` lists."""

    estimators: tuple[str, ...]
    latents: int
    categories: int | None
    hidden: int
    seeds: int
    plan: Plan
    samples: int
    repeats: int
    mnist: Path | None
    resume: bool
    out: Path


def parse(text: str) -> propc.estimators.Estimator:
    """An estimator from ``"name"`` or ``"name:option=value,option=value"``.

    Raises:
        PropcValueError: an unknown name or option; the nearest is named.
    """
    name, _, options = text.partition(":")
    pairs = (option.partition("=") for option in options.split(",") if option)
    return propc.estimator(name, **{key: value(given) for key, _, given in pairs})


def value(text: str) -> object:
    """A number, None or a truth value where it reads like one, else the text itself."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def first(settings: Settings, images: Images, seed: int) -> DiscreteVAE:
    """A fresh model."""
    torch.manual_seed(seed)
    return DiscreteVAE(images.test.shape[1], settings.latents, settings.categories, settings.hidden)


def bounded(estimator: str) -> bool:
    """Whether it is made for the multi-sample bound; all others are trained on the ELBO."""
    return parse(estimator).name == "vimco"


def inspect(settings: Settings, images: Images) -> list[propc.PropagationGraph]:
    """The graph under every estimator; one that cannot work here ends the program before anything is trained."""
    model, x = first(settings, images, seed=0), images.seen[: settings.plan.batch]
    try:
        return [model.with_estimator(parse(name)).graph(x, bounded(name)) for name in settings.estimators]
    except propc.PropcError as error:
        raise SystemExit(str(error)) from error


def checkpoint(settings: Settings, estimator: str, seed: int) -> Path:
    """Where a run is kept."""
    return settings.out / f"{re.sub(r'[^A-Za-z0-9.]+', '-', estimator)}-{seed}.pt"


def learn(settings: Settings, images: Images, estimator: str, seed: int) -> tuple[DiscreteVAE, Row]:
    """Train one model, or finish its training; the curve, bounds and times as a row."""
    plan = replace(settings.plan, bound=bounded(estimator))
    run = Run(first(settings, images, seed).with_estimator(parse(estimator)), plan)
    path = checkpoint(settings, estimator, seed)
    if settings.resume and path.exists():
        run.restore(path)
    train(run, images, path)
    epoch = median(run.seconds)
    return run.model, {
        "estimator": estimator,
        "seed": seed,
        **run.curve[-1],
        "test_bound": multi_sample(run.model, images.test, settings.samples),
        "epoch_seconds": epoch,
        "step_seconds": epoch / (len(images.train) // plan.batch),
        "curve": run.curve,
    }


def measure(settings: Settings, images: Images, trained: DiscreteVAE) -> list[Row]:
    """Bias and variance of the encoder's gradient: all estimators at the first parameters, and at trained ones."""
    x = images.seen[: settings.plan.batch]
    models = {"first": first(settings, images, seed=0), "trained": trained}
    parts = itertools.product(models, (False, True))
    return [row for stage, bound in parts for row in compared(settings, models[stage], x, stage, bound)]


def compared(settings: Settings, model: DiscreteVAE, x: Tensor, stage: str, bound: bool) -> list[Row]:
    """Those of the estimators that are trained on one of the objectives, of which only the ELBO has a reference."""
    chosen = {name: parse(name) for name in settings.estimators if bounded(name) == bound}
    if not chosen:
        return []
    reference = next(iter(chosen.values())) if bound else REFERENCE
    measured = {"wrt": "encoder", "repeats": settings.repeats, "reference": reference}
    found = propc.compare(model, x, bound, estimators=chosen, **measured)
    (settings.out / f"compare-{stage}{'-bound' * bound}.txt").write_text(f"{found}\n")
    length = torch.cat([part.flatten() for part in found.gradient.values()]).norm().item()
    keys = ("estimator", "bias", "stderr", "variance", "time")
    return [{"stage": stage, "length": length, **{key: row[key] for key in keys}} for row in found]


def read(argv: Sequence[str] | None) -> Settings:
    """The command line."""
    options = parser("discrete_vae", __doc__)
    options.add_argument("--estimators", nargs="+", help="the first one's models are where variances are measured")
    options.add_argument("--latents", type=int, default=20, help="random choices for an image")
    options.add_argument("--categories", type=int, help="sides of a die; without it the latents are coins")
    options.add_argument("--hidden", type=int, default=200, help="units of the encoder and of the decoder")
    options.add_argument("--seeds", type=int, default=1, help="runs of every estimator")
    options.add_argument("--epochs", type=int, default=300)
    options.add_argument("--batch", type=int, default=64)
    options.add_argument("--rate", type=float, default=1e-3, help="Adam's step size")
    options.add_argument("--every", type=int, default=10, help="epochs between evaluations, which write checkpoints")
    options.add_argument("--samples", type=int, default=200, help="of the bound on the test images")
    options.add_argument("--repeats", type=int, default=200, help="gradients per variance")
    options.add_argument("--mnist", type=Path, help="folder of train-images-idx3-ubyte and t10k-images-idx3-ubyte")
    options.add_argument("--resume", action="store_true", help="go on from the checkpoints in the output folder")
    args = vars(options.parse_args(argv))
    if args.pop("smoke"):
        args |= {"epochs": 4, "every": 2, "hidden": 30, "latents": 8, "samples": 5, "repeats": 30, "seeds": 1}
    names = args["estimators"] or ESTIMATORS
    for name in names:
        try:
            parse(name)
        except propc.PropcError as error:
            options.error(str(error))
    plan = Plan(**{key: args.pop(key) for key in ("epochs", "batch", "rate", "every")})
    return Settings(**{**args, "estimators": tuple(names), "plan": plan})


def main(argv: Sequence[str] | None = None) -> None:
    """Train, measure, tabulate, plot, and write the graph."""
    settings = read(argv)
    settings.out.mkdir(parents=True, exist_ok=True)
    images = load(settings.mnist)
    graph, *_ = inspect(settings, images)
    models, runs = {}, []
    for seed, name in tqdm(list(itertools.product(range(settings.seeds), settings.estimators)), desc="train"):
        trained, row = learn(settings, images, name, seed)
        models.setdefault(name, trained)
        runs.append(row)
    noise = measure(settings, images, models[settings.estimators[0]])
    kind = "coins" if settings.categories is None else f"dice of {settings.categories} sides"
    title = f"VAE of {settings.latents} {kind}: {settings.plan.epochs} epochs, seeds: {settings.seeds}"
    made = {title: bounds(settings.estimators, runs), "Gradients": gradients(settings.estimators, runs, noise)}
    show(Group(*(for_terminal(*part) for part in made.items())), settings.out)
    (settings.out / "table.md").write_text("\n".join(map(for_markdown, made.values())))
    write_results([*runs, *noise], settings.out)
    plot(settings.estimators, runs, noise, settings.out / "training.png")
    gallery(models, images, settings.out / "pictures.png")
    write_graph(graph, settings.out)
    print(f"Table, plots, pictures, graph and checkpoints are in {settings.out}")


if __name__ == "__main__":
    main()
