"""Draws without gradient."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.distributions import Categorical, Distribution, Gamma, NegativeBinomial, OneHotCategorical

from propc.distributions.probabilities import by_probs, log_odds
from propc.distributions.support import base_of
from propc.util.torch_private import CATEGORICAL


def draw_detached(dist: Distribution, sample_shape: Sequence[int] = ()) -> Tensor:
    """A draw without gradient; through `rsample` where there is one, which needs no host check.

    From a seed it gives what `sample` gives; of classes sooner.
    """
    shape = torch.Size(sample_shape)
    with torch.no_grad():
        if dist.has_rsample:
            return dist.rsample(shape)
        base = base_of(dist)
        if type(base) is NegativeBinomial and by_probs(base):  # its own sampler clamps them
            return torch.poisson(
                Gamma(base.total_count, (-log_odds(base.probs)).exp(), validate_args=False).sample(shape)
            )
        held = vars(base)[CATEGORICAL] if type(base) is OneHotCategorical else base
        if type(held) is not Categorical or "logits" not in vars(held):
            return dist.sample(shape)
        index = _classes(held.logits.exp(), shape)  # they are normalized: no need for a softmax
        return index if held is base else _one_hot(index, held.logits)


def _classes(probs: Tensor, shape: torch.Size) -> Tensor:
    """Classes with probabilities `probs` [..., K], integers [*shape, ...], as `Categorical.sample` draws them."""
    rows = probs.reshape(-1, probs.shape[-1])
    return torch.multinomial(rows, shape.numel(), replacement=True).T.reshape(shape + probs.shape[:-1])


def _one_hot(index: Tensor, logits: Tensor) -> Tensor:
    made = logits.new_zeros((*index.shape, logits.shape[-1]))
    return made.scatter_(-1, index.unsqueeze(-1), 1.0)
