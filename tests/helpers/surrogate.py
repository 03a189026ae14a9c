"""Brute-force surrogate losses, in plain torch: slow, and obviously right.

A program under test takes `sample` as an argument. Compiled, that is `propc.sample`; plain, it is
a `Plain`, which draws the same numbers from the same seed and keeps what the surrogate needs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution

Term = tuple[Tensor, Iterable[str]]


class Plain:
    """Draws as `propc.sample` does; detached, except at the sites of `pathwise`."""

    def __init__(self, pathwise: Iterable[str] = ()) -> None:
        self.pathwise = set(pathwise)
        self.dists: dict[str, Distribution] = {}
        self.draws: dict[str, Tensor] = {}
        self.scores: dict[str, Tensor] = {}

    def __call__(self, dist: Distribution, name: str, estimator: Any = None) -> Tensor:
        draw = dist.rsample() if dist.has_rsample else dist.sample()
        if name not in self.pathwise:
            draw = draw.detach()
            log_prob = dist.log_prob(draw)
            self.scores[name] = log_prob.reshape(len(log_prob), -1).sum(1)
        self.dists[name], self.draws[name] = dist, draw
        return draw


def surrogate(terms: Sequence[Term], scores: dict[str, Tensor]) -> Tensor:
    """Σ cost + Σ over its sites of (cost − mean of the other samples' costs) · log p, [batch]."""
    total = torch.stack([cost for cost, _ in terms]).sum(0)
    for cost, sites in terms:
        fixed = cost.detach()
        others = torch.stack([torch.cat([fixed[:i], fixed[i + 1 :]]).mean() for i in range(len(fixed))])
        for site in sites:
            if site in scores:
                total = total + (fixed - others) * scores[site]
    return total


def gradients(loss: Tensor, params: Sequence[Tensor]) -> list[Tensor]:
    """Gradients of a scalar; zeros where there is none."""
    if not loss.requires_grad:
        return [torch.zeros_like(p) for p in params]
    found = torch.autograd.grad(loss, params, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for g, p in zip(found, params)]


def seeded(fn: Callable[..., Any], *args: Any, seed: int = 1) -> Any:
    """Call `fn` from a given state of the generator."""
    torch.manual_seed(seed)
    return fn(*args)
