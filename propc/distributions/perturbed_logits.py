r"""Discrete distributions as estimators see them: logits, noise, and the maps between draws and relaxations.

A draw is a hard map of perturbed logits (the Gumbel-max trick), and its relaxation a soft map of the same:

    b = hard(z),    y = soft(z / temperature),    z = logits + noise

All of them have the shape of the logits: ``[...]`` for a Bernoulli, whose logit is log p/(1 − p), and
``[..., K]`` for K categories, whose logits are log-probabilities and whose draws are one-hot. Everything is
elementwise over the leading dimensions, however many there are.

Reference: Maddison, Mnih & Teh (2017), arXiv:1611.00712; Tucker et al. (2017), arXiv:1703.07370, for z given b.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Bernoulli, Categorical, Distribution, OneHotCategorical
from torch.nn import functional

from propc.distributions.probabilities import by_probs, log_odds, log_probs
from propc.distributions.support import base_of

Logits = Callable[[Any], Tensor]
Value = Callable[[Any, Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class Family(ABC):
    """What is common to distributions with the same kind of draws.

    Attributes:
        logits_by: distribution → its logits; None reads the attributes ``logits`` and ``probs``, as torch names them.
        value_by: distribution, b → the distribution's own draw; None where that is b.
    """

    logits_by: Logits | None = None
    value_by: Value | None = None

    def logits(self, dist: Distribution) -> Tensor:
        """The logits of a distribution, or of the one inside `Independent`."""
        inner: Any = base_of(dist)
        if self.logits_by is not None:
            return self.normalized(self.logits_by(inner))
        given = isinstance(inner, (Bernoulli, Categorical, OneHotCategorical)) and by_probs(inner)
        logits: Tensor = self.logits_of(inner.probs) if given else inner.logits
        return logits

    def probs(self, dist: Distribution) -> Tensor:
        """The mean of b."""
        inner: Any = base_of(dist)
        probs: Tensor = inner.probs if self.logits_by is None else self.soft(self.logits(inner))
        return probs

    def value(self, dist: Distribution, b: Tensor) -> Tensor:
        """The distribution's own draw, of b or of a relaxed draw."""
        return b if self.value_by is None else self.value_by(base_of(dist), b)

    def outcomes(self, dist: Distribution, count: int) -> Tensor:
        """The distribution's own draws of the first outcomes, [count, *batch_shape, ...]."""
        index = torch.arange(count, device=self.logits(dist).device)
        lead = base_of(dist).batch_shape
        return self.numbered(dist, index.reshape(count, *(1,) * len(lead)).expand(count, *lead))

    @abstractmethod
    def logits_of(self, probs: Tensor) -> Tensor:
        """Logits of probabilities."""

    @abstractmethod
    def normalized(self, logits: Tensor) -> Tensor:
        """Logits of any scale as they are wanted here."""

    @abstractmethod
    def numbered(self, dist: Distribution, index: Tensor) -> Tensor:
        """The distribution's own draws, without gradient, from the indices of outcomes [..., *batch_shape]."""

    @abstractmethod
    def draw(self, probs: Tensor) -> Tensor:
        """A draw, without gradient."""

    @abstractmethod
    def noise(self, like: Tensor) -> Tensor:
        """What perturbs logits, of the shape of a tensor."""

    @abstractmethod
    def hard(self, z: Tensor) -> Tensor:
        """The draw that perturbed logits give, without gradient."""

    @abstractmethod
    def soft(self, z: Tensor, temperature: float = 1.0) -> Tensor:
        """The relaxed draw that perturbed logits, over the temperature, give; of logits alone, the mean."""

    @abstractmethod
    def slope(self, mean: Tensor, logits: Tensor) -> Tensor:
        """`soft`, linearized where it gives `mean`: its Jacobian there times the logits."""

    @abstractmethod
    def given(self, b: Tensor, logits: Tensor, noise: Tensor) -> Tensor:
        """Perturbed logits z ~ p(z | hard(z) = b), a differentiable function of the logits.

        Args:
            b: a draw.
            logits: of the distribution.
            noise: made by `noise`, independent of b; it may have more leading dimensions.
        """


@dataclass(frozen=True, kw_only=True)
class Binary(Family):
    """Zero or one. The noise is logistic."""

    def logits_of(self, probs: Tensor) -> Tensor:
        return log_odds(probs)

    def normalized(self, logits: Tensor) -> Tensor:
        return logits

    @torch.no_grad()
    def numbered(self, dist: Distribution, index: Tensor) -> Tensor:
        return self.value(dist, index.to(self.logits(dist).dtype))

    def draw(self, probs: Tensor) -> Tensor:
        return (_uniform(probs) < probs).to(probs.dtype)

    def noise(self, like: Tensor) -> Tensor:
        return _uniform(like).logit_()

    def hard(self, z: Tensor) -> Tensor:
        return (z > 0).to(z.dtype)

    def soft(self, z: Tensor, temperature: float = 1.0) -> Tensor:
        return torch.sigmoid(z / temperature)

    def slope(self, mean: Tensor, logits: Tensor) -> Tensor:
        return mean * (1 - mean) * logits

    def given(self, b: Tensor, logits: Tensor, noise: Tensor) -> Tensor:
        """With s = ±1 for b = 1, 0: s·z = log(1 + e^noise / (1 − p_b)), where 1/(1 − p_b) = 1 + e^(s·logit)."""
        sign = 2 * b - 1
        return sign * functional.softplus(noise + functional.softplus(sign * logits))


@dataclass(frozen=True, kw_only=True)
class Categories(Family):
    """One of K categories, one-hot. The noise is Gumbel.

    Attributes:
        indexed: whether the distribution's own draws are the indices of categories, integers.
    """

    indexed: bool = False

    def logits_of(self, probs: Tensor) -> Tensor:
        return log_probs(probs)

    def normalized(self, logits: Tensor) -> Tensor:
        return torch.log_softmax(logits, -1)

    @torch.no_grad()
    def numbered(self, dist: Distribution, index: Tensor) -> Tensor:
        if self.indexed:
            return index
        logits = self.logits(dist)
        b = torch.zeros_like(logits).expand(*index.shape, logits.shape[-1])
        return self.value(dist, b.scatter(-1, index.unsqueeze(-1), 1.0))

    def draw(self, probs: Tensor) -> Tensor:
        exponential = _uniform(probs).log_().neg_()
        return self.hard(probs.detach() / exponential)  # `torch.multinomial` would wait for the device

    def noise(self, like: Tensor) -> Tensor:
        return _uniform(like).log_().neg_().log_().neg_()

    def hard(self, z: Tensor) -> Tensor:
        largest = z.detach().max(-1, keepdim=True).indices
        return torch.zeros_like(z, requires_grad=False).scatter_(-1, largest, 1.0)

    def soft(self, z: Tensor, temperature: float = 1.0) -> Tensor:
        if z.dtype == torch.float16:  # there z / 1e-4 is infinite
            z = z - z.detach().amax(-1, keepdim=True)
        return torch.softmax(z / temperature, -1)

    def slope(self, mean: Tensor, logits: Tensor) -> Tensor:
        weighted = mean * logits
        return weighted - mean * weighted.sum(-1, keepdim=True)

    def given(self, b: Tensor, logits: Tensor, noise: Tensor) -> Tensor:
        """The largest of all z is a Gumbel variable, as each noise is; the others are Gumbels cut off there."""
        largest = (b * noise).sum(-1, keepdim=True)
        return largest - (1 - b) * functional.softplus(largest - logits - noise)


def _uniform(like: Tensor) -> Tensor:
    """Noise in (0, 1) of the shape of a tensor, in the order of its indices.

    On the CPU several times as fast as `exponential_` and `torch.bernoulli`. Zero comes up now and then: it
    becomes half of the smallest step.
    """
    noise = torch.rand_like(like, memory_format=torch.contiguous_format, requires_grad=False)
    return noise.clamp_(min=torch.finfo(like.dtype).eps / 4)
