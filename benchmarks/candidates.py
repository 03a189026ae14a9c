"""Who is timed on the chaotic RNN: plain PyTorch, `torch.compile` of it, and propc on each of its backends."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial, wraps
from typing import Any

import models
import torch
from torch import Tensor
from torch.distributions import Distribution

import propc
from propc.util.torch_private import validates_args

__all__ = ["ESTIMATORS", "LONGEST_WHOLE", "Rollout", "by_compiler", "by_hand", "by_propc"]

Rollout = Callable[..., Tensor]
LONGEST_WHOLE = 10  # steps of a rollout that torch.compile takes as a whole; a hundred take it minutes

ESTIMATORS: dict[str, Any] = {"rp": "rp", "lr": "lr", "tp": "tp", "tp[beta]": propc.estimator("tp", target="beta")}


def by_hand() -> dict[str, Rollout]:
    """Plain PyTorch: the reference, and the score function."""
    return {name: fn for name, fn in models.by_hand().items() if name in ("hand rp", "hand lr")}


def by_propc(backend: str, names: Iterable[str] = ESTIMATORS) -> dict[str, Rollout]:
    """The program under each estimator on one backend; a name of propc's own will do for any other."""
    return {
        f"{backend} {name}": propc.compile(models.rollout, estimator=ESTIMATORS.get(name, name), backend=backend)
        for name in names
    }


def by_compiler(horizon: int, whole: bool = True) -> dict[str, Rollout]:
    """`torch.compile` of plain PyTorch: of one step, called in a loop, and with `whole` of all, where these are few.

    What it has compiled before is forgotten, so that every size is compiled for itself.
    """
    torch.compiler.reset()
    found = {"torch.compile rp, a step": partial(models.direct_rp, step=compiled(models.direct_step))}
    if whole and horizon <= LONGEST_WHOLE:
        found["torch.compile rp"] = compiled(models.direct_rp)
        found["torch.compile rp, own noise"] = compiled(models.direct_rp, fallback_random=False)
        found["torch.compile lr"] = compiled(models.surrogate_lr)
    return found


def compiled(fn: Rollout, fallback_random: bool = True) -> Rollout:
    """`torch.compile`, which leaves distributions unchecked for the whole process: that is taken back.

    With `fallback_random`, which is not its default, the noise is torch's: on the CPU that is much faster.
    """
    made = torch.compile(fn, dynamic=False, options={"fallback_random": fallback_random})

    @wraps(fn)
    def call(*arguments: Any) -> Tensor:
        checked = validates_args()
        try:
            return made(*arguments)
        finally:
            Distribution.set_default_validate_args(checked)

    return call
