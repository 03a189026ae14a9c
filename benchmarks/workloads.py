"""The workloads of `discrete.py` and `peer.py`: a model, its inputs, and the estimator by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import latents
import torch
from torch import Tensor, nn

__all__ = ["SAMPLES", "Workload", "full", "small", "step"]

SAMPLES = 10


@dataclass(frozen=True)
class Workload:
    """One row of the table; `target` bounds the time of propc over that by hand."""

    kind: str  # what model under what estimator
    model: Callable[[], nn.Module]
    inputs: Callable[[], Tensor]
    by_hand: Callable[[Any, Tensor], Tensor]
    target: float
    rounds: int
    size: str = ""
    plain: Callable[[Any, Tensor], Tensor] | None = None  # the same with distribution objects, where these matter

    def __str__(self) -> str:
        return f"{self.kind}, {self.size}" if self.size else self.kind


def images() -> Tensor:
    """A batch of 64 binary images."""
    return (torch.rand(64, 784) > 0.5).float()


def chain(rule: str, horizon: int, rounds: int) -> Workload:
    """A chain of Gaussians, ten joint samples of each of 100 rows."""
    by_hand, plain = {
        "lr": (latents.chain_lr, latents.chain_lr_plain),
        "rp": (latents.chain_rp, latents.chain_rp_plain),
    }[rule]
    return Workload(
        f"chain, {rule} K={SAMPLES}",
        partial(latents.Chain, horizon),
        lambda: torch.linspace(-1, 1, 100),
        partial(by_hand, samples=SAMPLES),
        1.3,
        rounds,
        f"H={horizon}",
        partial(plain, samples=SAMPLES),
    )


def full() -> list[Workload]:
    """All of them; chains from short to long."""
    classes, coins = partial(latents.VAE, 20, 10), partial(latents.VAE, 20)
    lr, plain = latents.vae_lr, latents.vae_lr_plain
    some, plain_some = partial(lr, samples=SAMPLES), partial(plain, samples=SAMPLES)
    return [
        Workload("vae, lr K=1", classes, images, lr, 1.05, 101, plain=plain),
        Workload(f"vae, lr K={SAMPLES}", classes, images, some, 1.05, 41, plain=plain_some),
        Workload("vae, gumbel_softmax", classes, images, latents.vae_gumbel_softmax, 1.05, 101),
        Workload("vae, local", coins, images, latents.vae_local, 1.1, 31, "20 coins"),
        Workload("enumerate", latents.Choice, lambda: torch.rand(8, 8), latents.choice_enumerate, 1.1, 31, "10⁴"),
        *(chain(rule, horizon, rounds) for rule in ("lr", "rp") for horizon, rounds in ((1, 101), (10, 61), (100, 31))),
    ]


def small() -> list[Workload]:
    """The same with fewer rounds."""
    return [replace(workload, rounds=max(9, workload.rounds // 10)) for workload in full()]


def step(model: nn.Module, costs: Callable[[], Tensor]) -> Callable[[], None]:
    """One step: clear the gradients, call `costs`, go backward through the mean."""
    parameters = list(model.parameters())

    def run() -> None:
        for parameter in parameters:
            parameter.grad = None
        costs().mean().backward()

    return run
