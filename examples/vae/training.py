"""Training one model under one estimator: epochs, ELBOs on the way, checkpoints from which to go on."""

import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from time import process_time
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from vae.bounds import elbo
from vae.data import Images
from vae.model import DiscreteVAE

Row = dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """How long and how fast to train, and how often to look.

    Attributes:
        epochs, batch, rate: passes through the training images, images a step, Adam's step size.
        every: epochs from one evaluation, and checkpoint, to the next.
        bound: train on the multi-sample bound in place of the ELBO.
    """

    epochs: int
    batch: int
    rate: float
    every: int
    bound: bool = False


@dataclass
class Run:
    """A training that can stop and go on: what a checkpoint holds.

    Attributes:
        seconds: of the processor that each epoch so far took, evaluations left out.
        curve: a row for every evaluation.
    """

    model: DiscreteVAE
    plan: Plan
    seconds: list[float] = field(default_factory=list)
    curve: list[Row] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=self.plan.rate)

    @property
    def epoch(self) -> int:
        """How many are done."""
        return len(self.seconds)

    def save(self, path: Path) -> None:
        """Write a checkpoint, whole or not at all; the state of the random numbers is in it."""
        torch.save(
            {
                "plan": asdict(self.plan),
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "random": torch.get_rng_state(),
                "seconds": self.seconds,
                "curve": self.curve,
            },
            path.with_suffix(".part"),
        )
        os.replace(path.with_suffix(".part"), path)

    def restore(self, path: Path) -> None:
        """Go on from a checkpoint, perhaps for more epochs.

        Raises:
            ValueError: it was made under another plan.
        """
        saved = torch.load(path)
        if saved["plan"] | {"epochs": self.plan.epochs} != asdict(self.plan):
            raise ValueError(f"{path} was made with {saved['plan']}, not {asdict(self.plan)}; remove it to begin anew")
        self.model.load_state_dict(saved["model"])
        self.optimizer.load_state_dict(saved["optimizer"])
        torch.set_rng_state(saved["random"])
        self.seconds, self.curve = saved["seconds"], saved["curve"]


def train(run: Run, images: Images, checkpoint: Path) -> None:
    """Train up to the last epoch; an interrupted run that goes on ends as if it had never stopped."""
    epochs = range(run.epoch, run.plan.epochs)
    for _ in tqdm(epochs, desc=checkpoint.stem, initial=run.epoch, total=run.plan.epochs, leave=False):
        begin = process_time()
        for x in batches(images.train, run.plan.batch):
            run.optimizer.zero_grad()
            run.model(x, run.plan.bound).mean().backward()
            run.optimizer.step()
        run.seconds.append(process_time() - begin)
        if run.epoch % run.plan.every == 0 or run.epoch == run.plan.epochs:
            run.curve.append({"epoch": run.epoch, "seconds": sum(run.seconds), **look(run.model, images)})
            run.save(checkpoint)


def batches(images: Tensor, size: int) -> Iterator[Tensor]:
    """One epoch of images [N, pixels] in random order, binarized anew, in batches of one size."""
    for rows in torch.randperm(len(images)).split(size):
        if len(rows) == size:
            yield torch.bernoulli(images[rows])


def look(model: DiscreteVAE, images: Images) -> Row:
    """ELBOs on training and test images."""
    return {"train_elbo": elbo(model, images.seen), "test_elbo": elbo(model, images.test)}
