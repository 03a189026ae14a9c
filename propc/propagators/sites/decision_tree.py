"""Draws as paths of binary decisions: a class of C is a leaf of a tree, each decision a Bernoulli variable.

Reference: Dong, Mnih & Tucker (2021), "Coupled gradient estimators for discrete latent variables", arXiv:2106.08056.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Pair:
    """One decision on the way to b, and the one on the way to b̃ at the same depth.

    Attributes:
        u, v: uniform random numbers; the same where both ways still meet, else independent.
        p, q: probability of a one.
        b, opposite: what is decided: 1[u < p], 1[v ≥ 1 − q].
        apart: where the ways have parted; None before they can.
    """

    u: Tensor
    v: Tensor
    p: Tensor
    q: Tensor
    b: Tensor
    opposite: Tensor
    apart: Tensor | None


Coefficients = Callable[[Pair], tuple[Tensor, Tensor]]


def drawn_pair(levels: list[Tensor], pairs: int, coefficients: Coefficients) -> tuple[Tensor, Tensor]:
    """Antithetic draws down a tree of decisions.

    Args:
        levels: log odds of a one, [*shape, 2^k] at depth k.
        pairs: how many, K.
        coefficients: of the log odds on both ways.

    Returns:
        The leaves [2K, *shape], all b and then all b̃; and the sum of coefficients times log odds along both ways
        [K, *shape], differentiable in these alone.
    """
    b = opposite = tangent = torch.empty(0)
    for depth, level in enumerate(levels):
        if depth == 0:
            odds = other = level.squeeze(-1)
            apart = None
            u = v = torch.rand((pairs, *odds.shape), dtype=odds.dtype, device=odds.device)
        else:
            apart = b != opposite
            odds, other = (_at(level, index) for index in (b, opposite))
            u, fresh = torch.rand((2, *odds.shape), dtype=odds.dtype, device=odds.device)
            v = torch.where(apart, fresh, u)
        with torch.no_grad():
            p = torch.sigmoid(odds)
            q = p if apart is None else torch.sigmoid(other)
            one, two = u < p, v >= 1 - q
            first, second = coefficients(Pair(u, v, p, q, one, two, apart))
        if apart is None:
            tangent, b, opposite = first * odds, one.long(), two.long()
        else:
            tangent = tangent + first * odds + torch.where(apart, second, 0.0) * other
            b, opposite = 2 * b + one, 2 * opposite + two
    return torch.cat([b, opposite]), tangent


def tree(logits: Tensor) -> list[Tensor]:
    """The log odds of the decisions that lead to classes with these logits [*shape, C]: at depth k [*shape, 2^k].

    The leaves without a class, which make their number a power of two, lie apart from each other.
    """
    least = torch.finfo(logits.dtype).min / 4
    classes = logits.shape[-1]
    size = _size(classes)
    nodes = logits.clamp(min=least)
    if size != classes:
        nodes = torch.full((*logits.shape[:-1], size), least, dtype=logits.dtype, device=logits.device)
        nodes = nodes.index_copy(-1, _places(classes, str(logits.device)), logits.clamp(min=least))
    levels: list[Tensor] = []
    while nodes.shape[-1] > 1:
        zero, one = nodes.unflatten(-1, (-1, 2)).unbind(-1)
        levels.append(one - zero)
        nodes = torch.logaddexp(zero, one)
    return levels[::-1] or [0 * nodes + least]  # a single class: never a one


def categories_of(leaves: Tensor, classes: int) -> Tensor:
    """The classes of leaves."""
    if classes == _size(classes):
        return leaves
    return torch.bucketize(leaves, _places(classes, str(leaves.device)), right=True) - 1


def _at(level: Tensor, index: Tensor) -> Tensor:
    """[*shape, N] at [K, *shape] → [K, *shape]."""
    return level.expand(*index.shape, level.shape[-1]).gather(-1, index.unsqueeze(-1)).squeeze(-1)


def _size(classes: int) -> int:
    return 1 << (classes - 1).bit_length()


@lru_cache
def _places(classes: int, device: str) -> Tensor:
    """The leaves of the classes, evenly spread."""
    with torch.inference_mode(False):
        return torch.arange(classes, device=device) * _size(classes) // classes
