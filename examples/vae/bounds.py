"""Lower bounds of the log-likelihood: what every estimator's model is judged by, at hard samples."""

import math

import torch
from torch import Tensor

from vae.model import DiscreteVAE


def elbo(model: DiscreteVAE, x: Tensor, samples: int = 10) -> float:
    """The evidence lower bound, averaged over binary images [N, pixels]."""
    return log_weights(model, x, samples).mean().item()


def multi_sample(model: DiscreteVAE, x: Tensor, samples: int) -> float:
    """The bound of Burda et al. (2016) with so many draws for each image: it rises to the log-likelihood."""
    weights = log_weights(model, x, samples)
    return (weights.logsumexp(0) - math.log(samples)).mean().item()


def log_weights(model: DiscreteVAE, x: Tensor, samples: int, chunk: int = 100) -> Tensor:
    """log p(x, z)/q(z|x), [samples, N], always of the same draws, which do not disturb a training's."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return torch.cat([model.log_weights(part, samples) for part in x.split(chunk)], 1)
