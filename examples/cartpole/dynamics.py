"""The learned model of the system: Bayesian linear regression on random Fourier features.

M cosines of random frequency approximate a Gaussian process with a squared exponential kernel
(Rahimi & Recht 2007); linear features stand beside them. The model predicts the change of state
over a period. Length scales, prior scales and process noise are fitted by the evidence, and what
the data leave open is in the posterior over the weights: a particle of a rollout follows, over the
whole rollout, one function drawn from it.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from cartpole.system import Episodes, observe

LENGTHS = (1.0, 2.0, 1.0, 1.0, 5.0, 10.0)  # length scales to start from: observation, then action
LINEAR_STD = 0.1  # prior scale of a linear feature's weight


class Functions(NamedTuple):
    """K functions drawn from the posterior; B particles follow them in K groups of B / K."""

    frequencies: Tensor  # [6, M]
    phases: Tensor  # [M]
    weights: Tensor  # [K, M + 7, 4]
    noise: Tensor  # [4], standard deviation of the process noise

    def __call__(self, state: Tensor, seen: Tensor, action: Tensor) -> Tensor:
        """The mean of the next states, [B, 4]."""
        features = featurize(torch.cat([seen, action], -1), self.frequencies, self.phases)
        groups = features.unflatten(0, (len(self.weights), -1))
        return state + (groups @ self.weights).flatten(0, 1)


def featurize(x: Tensor, frequencies: Tensor, phases: Tensor) -> Tensor:
    """Cosines, inputs and a constant, [B, M + 7]."""
    waves = torch.addmm(phases, x, frequencies).cos()
    return torch.cat([waves, x, torch.ones_like(x[:, :1])], -1)


class Dynamics(nn.Module):
    """The posterior over functions. `fit` it to episodes, then `draw` from it."""

    def __init__(self, waves: int = 150):
        super().__init__()
        self.register_buffer("directions", torch.randn(6, waves))
        self.register_buffer("phases", 2 * math.pi * torch.rand(waves))
        scales = torch.cat([torch.full((waves,), (2 / waves) ** 0.5), torch.full((7,), LINEAR_STD)])
        self.register_buffer("feature_scales", scales)
        self.log_lengths = nn.Parameter(torch.tensor(LENGTHS).log())
        self.log_prior = nn.Parameter(torch.zeros(4))
        self.log_noise = nn.Parameter(torch.full((4,), -2.0))  # in units of `change_scale`
        self.register_buffer("change_scale", torch.ones(4))
        self.register_buffer("mean", torch.zeros(4, waves + 7, 1))
        self.register_buffer("cholesky", torch.eye(waves + 7).repeat(4, 1, 1))

    def frequencies(self) -> Tensor:
        """Frequencies of the cosines, [6, M]."""
        return self.directions / self.log_lengths.exp()[:, None]

    def posterior(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Weights' means [4, F, 1], Cholesky factors of their precisions [4, F, F], log evidence [4].

        x is [N, 6], y the scaled changes of the four coordinates, [N, 4]. All results are float64: a coordinate with
        little noise makes the precision's eigenvalues differ by more than float32 can hold.
        """
        features = (featurize(x, self.frequencies(), self.phases) * self.feature_scales).double()
        noise, prior, y = (2 * self.log_noise).double().exp(), (2 * self.log_prior).double().exp(), y.double()
        precision = (features.T @ features) / noise[:, None, None] + torch.diag_embed(
            (1 / prior)[:, None].expand(-1, features.shape[1])
        )
        cholesky = torch.linalg.cholesky(precision)
        moment = (features.T @ y).T[:, :, None] / noise[:, None, None]
        mean = torch.cholesky_solve(moment, cholesky)
        misfit = y.square().sum(0) / noise - (moment * mean).sum((1, 2))
        log_determinant = 2 * cholesky.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        log_scales = features.shape[1] * prior.log() + len(x) * noise.log()
        return mean, cholesky, -0.5 * (misfit + log_determinant + log_scales)

    def fit(self, episodes: Episodes, steps: int = 100) -> None:
        """Maximize the evidence times a broad prior of the scales, then keep the posterior."""
        states, actions = episodes
        x = torch.cat([observe(states[:-1].flatten(0, 1)), actions.flatten(0, 1)], -1)
        changes = states.diff(dim=0).flatten(0, 1)
        self.change_scale = changes.std(0)
        y = changes / self.change_scale
        optimizer = torch.optim.Adam(self.parameters(), lr=0.05)
        for _ in range(steps):
            optimizer.zero_grad()
            (self.penalty() - self.posterior(x, y)[2].sum()).backward()
            optimizer.step()
        with torch.no_grad():
            mean, cholesky, _ = self.posterior(x, y)
            self.mean, self.cholesky = mean.float(), cholesky.float()

    def penalty(self) -> Tensor:
        """Minus the log prior of the scales: log-normal around where they start."""
        lengths = self.log_lengths - torch.tensor(LENGTHS).log()
        return 0.5 * sum(part.square().sum() for part in (lengths, self.log_prior, self.log_noise + 2))

    @torch.no_grad()
    def draw(self, count: int) -> Functions:
        """Functions from the posterior."""
        deviations = torch.randn(4, self.mean.shape[1], count)
        weights = self.mean + torch.linalg.solve_triangular(self.cholesky.mT, deviations, upper=True)
        weights = weights.permute(2, 1, 0) * self.feature_scales[:, None] * self.change_scale
        return Functions(self.frequencies(), self.phases, weights, self.log_noise.exp() * self.change_scale)
