"""Probabilities of discrete laws, from the tensor that the law was given by.

A law that was given by `probs` makes its `logits` from them, clamped to [ε, 1 − ε]: below ε both the value and the
gradient of its `log_prob` are lost. Here they are taken from `probs`, and from `logits` where these were given.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.distributions import (
    Bernoulli,
    Binomial,
    Categorical,
    Independent,
    MixtureSameFamily,
    Multinomial,
    NegativeBinomial,
    OneHotCategorical,
)

from propc.util.torch_private import CATEGORICAL, PARAM

LARGEST = 80.0  # of an exponent, so that float32 does not overflow


def by_probs(dist: Any) -> bool:
    """Whether a law of torch's was given by `probs`, also where it holds the `logits` that these have made."""
    held = vars(vars(dist).get(CATEGORICAL, dist))
    if "probs" not in held or "logits" not in held:
        return "probs" in held
    first = next(name for name in held if name in ("probs", "logits"))
    return first == "probs" if PARAM not in held else held[PARAM] is held["probs"]


def log_prob(dist: Any, value: Tensor) -> Tensor:
    """`dist.log_prob(value)`, of a law that was given by `probs` right below ε too."""
    method = type(dist).log_prob
    if method is Independent.log_prob:
        count = dist.reinterpreted_batch_ndims
        logp = log_prob(dist.base_dist, value)
        return logp.flatten(-count).sum(-1) if count else logp
    if method is MixtureSameFamily.log_prob:
        return _mixture(dist, value)
    exact = _FROM_PROBS.get(method)
    found: Tensor = exact(dist, value) if exact is not None and by_probs(dist) else dist.log_prob(value)
    return found


def probabilities(dist: Any, support: Tensor) -> Tensor:
    """The probability of each value of each element, [values, *batch_shape]; differentiable at 0 and 1 too."""
    if type(dist).log_prob in (Categorical.log_prob, OneHotCategorical.log_prob):
        table: Tensor = dist.probs.movedim(-1, 0)
    elif type(dist).log_prob is Bernoulli.log_prob and by_probs(dist):
        table = torch.where(support > 0, dist.probs, 1 - dist.probs)
    elif type(dist).log_prob is Binomial.log_prob and by_probs(dist):
        table = _binomial(dist, support)
    else:
        table = log_prob(dist, support).exp()
    return table.expand(len(support), *dist.batch_shape)


def log_odds(probs: Tensor) -> Tensor:
    """log p/(1 − p); at 0 and 1 that of the numbers next to them, without gradient."""
    probs = probs.clamp(torch.finfo(probs.dtype).tiny, 1 - torch.finfo(probs.dtype).eps / 2)
    return probs.log() - torch.log1p(-probs)


def log_probs(probs: Tensor) -> Tensor:
    """log p; at 0 that of the number next to it, without gradient."""
    return probs.clamp(min=torch.finfo(probs.dtype).tiny).log()


def _bernoulli(dist: Any, value: Tensor) -> Tensor:
    return torch.where(value > 0, dist.probs, 1 - dist.probs).log()


def _categorical(dist: Any, value: Tensor) -> Tensor:
    index = value.long().unsqueeze(-1)
    lead = torch.broadcast_shapes(value.shape, dist.batch_shape)
    probs = dist.probs.expand(*lead, dist.probs.shape[-1])
    drawn: Tensor = probs.gather(-1, index.expand(*lead, 1)).squeeze(-1)
    return drawn.log()


def _one_hot(dist: Any, value: Tensor) -> Tensor:
    drawn: Tensor = (value * dist.probs).sum(-1)
    return drawn.log()


def _multinomial(dist: Any, value: Tensor) -> Tensor:
    ways = torch.lgamma(value.sum(-1) + 1) - torch.lgamma(value + 1).sum(-1)
    return ways + _times_log(value, dist.probs).sum(-1)


def _binomial_log(dist: Any, value: Tensor) -> Tensor:
    rest = dist.total_count - value
    return _ways(dist, value) + _times_log(value, dist.probs) + _times_log(rest, 1 - dist.probs)


def _binomial(dist: Any, value: Tensor) -> Tensor:
    """Without a logarithm of p, for values that have no probability."""
    probs, rest = dist.probs, dist.total_count - value
    return _ways(dist, value).exp() * torch.pow(probs, value) * torch.pow(1 - probs, rest)


def _ways(dist: Any, value: Tensor) -> Tensor:
    count: Tensor = dist.total_count
    return torch.lgamma(count + 1) - torch.lgamma(value + 1) - torch.lgamma(count - value + 1)


def _negative_binomial(dist: Any, value: Tensor) -> Tensor:
    count: Tensor = dist.total_count
    ways = torch.lgamma(count + value) - torch.lgamma(1.0 + value) - torch.lgamma(count)
    ways = torch.where(count + value == 0, 0.0, ways)  # torch's convention for a count of 0
    return ways + count * torch.log1p(-dist.probs) + _times_log(value, dist.probs)


def _times_log(count: Tensor, probs: Tensor) -> Tensor:
    """count · log p, and 0, with its gradient, where the count is."""
    return count * torch.where(count > 0, probs, 1.0).log()


def _mixture(dist: Any, value: Tensor) -> Tensor:
    """Of a mixture: log Σ_k p_k q_k(x), with the gradient q_k(x) / p(x) also at p_k = 0."""
    within = log_prob(dist.component_distribution, value.unsqueeze(-1 - len(dist.event_shape)))
    mixing = dist.mixture_distribution
    if not by_probs(mixing):
        return torch.logsumexp(within + torch.log_softmax(mixing.logits, -1), -1)
    with torch.no_grad():
        whole = torch.logsumexp(within + mixing.probs.log(), -1)
    share = mixing.probs * (within - whole.unsqueeze(-1)).clamp(max=LARGEST).exp()
    rest: Tensor = share.sum(-1).log()
    return whole + rest


_FROM_PROBS: dict[Callable[..., Tensor], Callable[[Any, Tensor], Tensor]] = {
    Bernoulli.log_prob: _bernoulli,
    Binomial.log_prob: _binomial_log,
    Categorical.log_prob: _categorical,
    Multinomial.log_prob: _multinomial,
    NegativeBinomial.log_prob: _negative_binomial,
    OneHotCategorical.log_prob: _one_hot,
}
