"""A measure-valued derivative, to copy: change family, parameter and formula, and check it against a closed form."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import Laplace

import propc


@propc.register_measure(Laplace, "loc", reuses="positive")
def laplace_loc(dist: Laplace, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """∂p/∂μ = sign(x − μ) p / b: of one side of μ minus the other, which is the mirror image of the draw."""
    return torch.sign(x - dist.loc) / (2 * dist.scale), x, 2 * dist.loc - x


@propc.register_measure(Laplace, "scale", reuses="negative")
def laplace_scale(dist: Laplace, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """∂p/∂b = (|x − μ| / b − 1) p / b: |x − μ| of Gamma(2, 1/b), minus the draw, where it is exponential."""
    more = dist.scale * torch.empty_like(x).exponential_()
    return 1 / dist.scale, x + torch.sign(x - dist.loc) * more, x


@propc.compile(estimator="mvd")
def program(loc: Tensor, scale: Tensor) -> Tensor:
    """P(x > 1) = exp(−(1 − μ)/b)/2, with gradient (1/b, (1 − μ)/b²) times that; pathwise it would be 0."""
    return (propc.sample(Laplace(loc, scale), "x") > 1).float()


def check() -> None:
    """Per-sample gradients against the closed form, in standard errors."""
    loc, scale = (torch.full((200_000,), value, requires_grad=True) for value in (0.4, 0.8))
    tail = 0.5 * torch.tensor(-0.6 / 0.8).exp()
    exact = tail / 0.8, tail * 0.6 / 0.8**2
    for draws, right in zip(torch.autograd.grad(program(loc, scale).sum(), (loc, scale)), exact):
        error = draws.std() / len(draws) ** 0.5
        assert (draws.mean() - right).abs() < 5 * error
        assert (draws.mean() - 1.1 * right).abs() > 5 * error  # the check can tell a biased estimate


if __name__ == "__main__":
    check()
