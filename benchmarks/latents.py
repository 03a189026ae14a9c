"""Models with discrete and continuous latents, and estimators of their gradients written by hand.

Nothing here knows propc: these are the references of `discrete.py`, vectorized over samples, without distribution
objects or checks, each normalization computed once; those called plain have distribution objects. Every one treats the
cost behind the sample as a function to be called on more rows; none uses what is special about it (that a layer is
linear, say). They return costs [batch] whose mean goes backward; score-function estimators return a surrogate.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.distributions import Normal, OneHotCategorical
from torch.nn import functional as F

__all__ = [
    "SIGMA",
    "TEMPERATURE",
    "VAE",
    "Chain",
    "Choice",
    "bernoulli_kl",
    "categorical_kl",
    "chain_lr",
    "chain_lr_plain",
    "chain_rp",
    "chain_rp_plain",
    "choice_enumerate",
    "vae_gumbel_softmax",
    "vae_local",
    "vae_lr",
    "vae_lr_plain",
]

SIGMA = 0.5
TEMPERATURE = 0.5


class VAE(nn.Module):
    """784-256-latent and back, Bernoulli pixels; `latent` is the shape of one row's sample."""

    def __init__(self, *latent: int, pixels: int = 784, hidden: int = 256) -> None:
        super().__init__()
        self.latent = latent
        size = math.prod(latent)
        self.encoder = nn.Sequential(nn.Linear(pixels, hidden), nn.ReLU(), nn.Linear(hidden, size))
        self.decoder = nn.Sequential(nn.Linear(size, hidden), nn.ReLU(), nn.Linear(hidden, pixels))

    def logits(self, x: Tensor) -> Tensor:
        """[batch, *latent] for images `x` [batch, pixels]."""
        return self.encoder(x).unflatten(-1, self.latent)

    def loss(self, z: Tensor, x: Tensor) -> Tensor:
        """−log p(x | z), [..., batch], for samples `z` [..., batch, *latent]."""
        logits = self.decoder(z.flatten(-len(self.latent)))
        return F.binary_cross_entropy_with_logits(logits, x.expand_as(logits), reduction="none").sum(-1)


class Choice(nn.Module):
    """A cost of a few categorical choices z [..., batch, sites, classes] made for a context x [batch, context]."""

    def __init__(self, sites: int = 4, classes: int = 10, context: int = 8, hidden: int = 32) -> None:
        super().__init__()
        self.latent = (sites, classes)
        self.policy = nn.Linear(context, sites * classes)
        self.choice = nn.Linear(sites * classes, hidden)
        self.context = nn.Linear(context, hidden)
        self.head = nn.Linear(hidden, 1)

    def logits(self, x: Tensor) -> Tensor:
        """[batch, sites, classes]."""
        return self.policy(x).unflatten(-1, self.latent)

    def loss(self, z: Tensor, x: Tensor) -> Tensor:
        """[..., batch]."""
        hidden = torch.tanh(self.choice(z.flatten(-2)) + self.context(x))
        return self.head(hidden).squeeze(-1)


class Chain(nn.Module):
    """x′ = tanh(a·x + b) + N(0, ½²), `horizon` times, one number a row; the cost is (x_H − 1)²."""

    def __init__(self, horizon: int) -> None:
        super().__init__()
        self.horizon = horizon
        self.a = nn.Parameter(torch.tensor(0.9))
        self.b = nn.Parameter(torch.tensor(0.1))

    def step(self, x: Tensor) -> Tensor:
        """The mean of the next state."""
        return torch.tanh(self.a * x + self.b)

    def loss(self, x: Tensor) -> Tensor:
        """Of the last state."""
        return (x - 1).square()


def categorical_kl(log_q: Tensor) -> Tensor:
    """KL to uniform classes, [batch]; `log_q` [batch, sites, classes] is normalized."""
    return (log_q.exp() * (log_q + math.log(log_q.shape[-1]))).sum((-1, -2))


def bernoulli_kl(logits: Tensor) -> Tensor:
    """KL to fair coins, [batch]; `logits` [batch, sites]."""
    return (torch.sigmoid(logits) * logits - F.softplus(logits) + math.log(2)).sum(-1)


def normalized(logits: Tensor) -> Tensor:
    """What `log_softmax` gives; on the CPU, and for few classes, in a third of its time."""
    return logits - logits.logsumexp(-1, keepdim=True)


def others(costs: Tensor) -> Tensor:
    """The mean of the other costs along the first dimension."""
    return (costs.sum(0) - costs) / (len(costs) - 1)


def vae_lr(model: VAE, x: Tensor, samples: int = 1) -> Tensor:
    """Score function of 20×10 classes; leave-one-out over the samples, over the batch with one sample."""
    log_q = normalized(model.logits(x))
    with torch.no_grad():
        drawn = torch.multinomial(log_q.exp().flatten(0, -2), samples, replacement=True)
        index = drawn.T.reshape(samples, *log_q.shape[:-1], 1)
        z = torch.zeros(samples, *log_q.shape).scatter_(-1, index, 1.0)
    log_prob = (z * log_q).sum((-1, -2))
    loss = model.loss(z, x)
    costs = loss.detach()
    message = costs - (others(costs) if samples > 1 else others(costs[0]))
    return (loss + message * log_prob).mean(0) + categorical_kl(log_q)


def vae_lr_plain(model: VAE, x: Tensor, samples: int = 1) -> Tensor:
    """The same with a distribution object, as most would write it."""
    q = OneHotCategorical(logits=model.logits(x))
    z = q.sample((samples,))
    loss = model.loss(z, x)
    costs = loss.detach()
    message = costs - (others(costs) if samples > 1 else others(costs[0]))
    return (loss + message * q.log_prob(z).sum(-1)).mean(0) + categorical_kl(q.logits)


def vae_gumbel_softmax(model: VAE, x: Tensor, temperature: float = TEMPERATURE) -> Tensor:
    """Relaxed classes."""
    log_q = normalized(model.logits(x))
    gumbel = -torch.empty_like(log_q).exponential_().log()
    z = ((log_q + gumbel) / temperature).softmax(-1)
    return model.loss(z, x) + categorical_kl(log_q)


def vae_local(model: VAE, x: Tensor) -> Tensor:
    """Local expectation of Bernoullis: every coordinate flipped in turn, the others as drawn."""
    logits = model.logits(x)
    p = torch.sigmoid(logits)
    z = torch.bernoulli(p.detach())
    loss = model.loss(z, x)
    with torch.no_grad():
        flip = torch.eye(z.shape[-1])[:, None]
        other = model.loss((z - flip).abs(), x)  # [sites, batch]
        difference = (2 * z - 1) * (loss - other).T  # f(z_j = 1) − f(z_j = 0)
    return loss + (p * difference).sum(-1) + bernoulli_kl(logits)


@lru_cache
def configurations(sites: int, classes: int) -> Tensor:
    """Every joint choice, one-hot, [classes ** sites, 1, sites, classes]."""
    index = torch.cartesian_prod(*[torch.arange(classes)] * sites)
    return F.one_hot(index, classes).to(torch.get_default_dtype())[:, None]


def choice_enumerate(model: Choice, x: Tensor) -> Tensor:
    """The sum over all configurations of probability times cost."""
    log_q = normalized(model.logits(x))
    sites, classes = model.latent
    joint = log_q[:, 0]
    for site in range(1, sites):
        joint = (joint[:, :, None] + log_q[:, site, None]).flatten(1)  # [batch, classes ** (site + 1)]
    costs = model.loss(configurations(sites, classes).expand(-1, len(x), -1, -1), x)
    return (joint.exp().T * costs).sum(0)


def chain_rp(model: Chain, x: Tensor, samples: int = 10) -> Tensor:
    """Pathwise, from starts `x` [batch]."""
    x = x.expand(samples, -1)
    for _ in range(model.horizon):
        mean = model.step(x)
        x = mean + SIGMA * torch.randn_like(mean)
    return model.loss(x).mean(0)


def chain_lr(model: Chain, x: Tensor, samples: int = 10) -> Tensor:
    """Score function of joint trajectories, leave-one-out over the samples."""
    x = x.expand(samples, -1)
    squares = torch.zeros_like(x)
    for _ in range(model.horizon):
        mean = model.step(x)
        x = mean.detach() + SIGMA * torch.randn_like(mean)
        squares = squares + (x - mean).square()
    log_prob = squares * (-0.5 / SIGMA**2)
    costs = model.loss(x)
    return (costs + (costs - others(costs)) * log_prob).mean(0)


def chain_rp_plain(model: Chain, x: Tensor, samples: int = 10) -> Tensor:
    """`chain_rp` with distribution objects, as most would write it."""
    x = x.expand(samples, -1)
    for _ in range(model.horizon):
        x = Normal(model.step(x), SIGMA).rsample()
    return model.loss(x).mean(0)


def chain_lr_plain(model: Chain, x: Tensor, samples: int = 10) -> Tensor:
    """`chain_lr` with distribution objects, as most would write it."""
    x = x.expand(samples, -1)
    log_prob = torch.zeros_like(x)
    for _ in range(model.horizon):
        law = Normal(model.step(x), SIGMA)
        x = law.sample()
        log_prob = log_prob + law.log_prob(x)
    costs = model.loss(x)
    return (costs + (costs - others(costs)) * log_prob).mean(0)
