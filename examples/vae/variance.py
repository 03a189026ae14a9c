"""The variance of the encoder's gradient, every estimator at the same parameters."""

from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from vae.model import DiscreteVAE


def gradient_variance(model: DiscreteVAE, x: Tensor, repeats: int) -> dict[str, Any]:
    """Variance of the gradient of the mean cost of one batch, summed over the encoder, and the time of one gradient."""
    draws, seconds = [], []
    weights = list(model.encoder.parameters())
    for _ in range(repeats):
        begin = perf_counter()
        parts = torch.autograd.grad(model(x).mean(), weights)
        seconds.append(perf_counter() - begin)
        draws.append(torch.cat([part.flatten() for part in parts]))
    return {"variance": torch.stack(draws).var(0).sum().item(), "ms": 1000 * torch.tensor(seconds).median().item()}
