"""The log-probability of the draw that was made, by rows of the batch.

A transformed draw is rounded where its transforms saturate, and a transform may hand back a cached pre-image that has
no gradient. So a draw is kept with what it was made of, its trail, and its log-probability is taken at the innermost
place behind which no transform holds anything that wants a gradient. What is left out is a constant in φ.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, TransformedDistribution
from torch.distributions.transforms import ComposeTransform, Transform

from propc.distributions.probabilities import log_prob
from propc.distributions.sampling import draw_detached
from propc.distributions.spec import holds_live
from propc.util.torch_private import caches

Trail = tuple[Tensor, ...]
"""A draw from the innermost distribution, and what each transform has made of it; the last is the draw."""


def drawn(dist: Distribution, sample_shape: Sequence[int] = (), path: bool = False) -> Trail:
    """A draw with its trail, from the random numbers that `sample` takes.

    Args:
        path: whether with a path to the parameters (`rsample`), else without gradient.
    """
    base, transforms = layers(dist)
    with torch.set_grad_enabled(path and torch.is_grad_enabled()):
        trail = [base.rsample(torch.Size(sample_shape)) if path else draw_detached(base, sample_shape)]
        for transform in transforms:
            trail.append(transform(trail[-1]))
    return tuple(trail)


def row_log_prob(dist: Distribution, value: Tensor, lead: int = 1) -> Tensor:
    """Log-probability of each row: summed over everything but the `lead` leading dimensions of `value`."""
    while isinstance(dist, Independent) and value.dim() - len(dist.event_shape) < lead:
        dist = dist.base_dist
    return _rows(log_prob(dist, value), lead)


def row_score(dist: Distribution, trail: Trail, lead: int = 1) -> Tensor:
    """What has the gradient of `row_log_prob` in the parameters, for a draw with its trail.

    Args:
        dist: the distribution; parameters may have other histories than where it was drawn.
        trail: without gradient.
    """
    base, transforms = layers(dist)
    last = max((i for i, transform in enumerate(transforms) if holds_live(transform)), default=-1)
    value, slopes = trail[last + 1], []
    for transform, inner in zip(transforms[last::-1], trail[last::-1]) if last >= 0 else ():
        before = transform.inv(value.view_as(value))  # another tensor than the one whose pre-image is cached
        slope = transform.log_abs_det_jacobian(before, value)
        slopes.append(slope.expand(before.shape[: before.dim() - transform.domain.event_dim]))
        value = before + (inner - before).detach()  # as it was, with the gradient of the inverse
    score = row_log_prob(base, value, lead)
    for slope in slopes:
        score = score - _rows(slope, lead)
    return score


def layers(dist: Any) -> tuple[Distribution, list[Transform]]:
    """The innermost distribution, and the transforms of its draws in their order."""
    transforms: list[Transform] = []
    while True:
        if _plain(dist, Independent):
            dist = dist.base_dist
        elif _plain(dist, TransformedDistribution):
            transforms = [part for each in dist.transforms for part in _parts(each)] + transforms
            dist = dist.base_dist
        else:
            return dist, transforms


def behind_caches(dist: Any) -> tuple[Distribution, list[Transform]]:
    """The distribution before transforms that keep pre-images, and these; nothing in them wants a gradient.

    The distribution itself, and none, where there are no such.
    """
    inner, count = dist, 0
    while _plain(inner, Independent):
        inner, count = inner.base_dist, count + inner.reinterpreted_batch_ndims
    if not _plain(inner, TransformedDistribution) or inner.base_dist.batch_shape != inner.batch_shape:
        return dist, []
    parts = [part for each in inner.transforms for part in _parts(each)]
    if not any(map(caches, parts)) or any(map(holds_live, parts)):
        return dist, []
    law, before = behind_caches(Independent(inner.base_dist, count) if count else inner.base_dist)
    return law, [*before, *inner.transforms]


def _plain(dist: Any, kind: Any) -> bool:
    """Whether a distribution draws, and has the log-probability, of this kind."""
    own = type(dist)
    return own.log_prob is kind.log_prob and own.sample is kind.sample and own.rsample is kind.rsample


def _parts(transform: Transform) -> list[Transform]:
    return list(transform.parts) if type(transform) is ComposeTransform else [transform]


def _rows(logp: Tensor, lead: int) -> Tensor:
    return logp.flatten(lead).sum(lead) if logp.dim() > lead else logp
