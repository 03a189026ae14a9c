"""A discrete family, to copy: change the distribution and what is said of it, and check it against exact gradients."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor
from torch.distributions import Distribution, constraints
from torch.nn import functional

import propc


class Spin(Distribution):
    """Minus one or one; the logit is log p(1) / p(−1)."""

    arg_constraints: ClassVar = {"logits": constraints.real}
    has_enumerate_support = True  # then `enumerate` and `local` work

    def __init__(self, logits: Tensor) -> None:
        self.logits = logits
        super().__init__(logits.shape, validate_args=False)

    def sample(self, sample_shape: tuple[int, ...] = ()) -> Tensor:
        """Draws [*sample_shape, *batch_shape]."""
        p = torch.sigmoid(self.logits).detach().expand(*sample_shape, *self.batch_shape)
        return 2 * torch.bernoulli(p) - 1

    def log_prob(self, value: Tensor) -> Tensor:
        """Of each element."""
        return functional.logsigmoid(value * self.logits)

    def enumerate_support(self, expand: bool = True) -> Tensor:
        """Both values, in front of the batch shape."""
        values = torch.tensor([-1.0, 1.0], device=self.logits.device).reshape(2, *(1,) * len(self.batch_shape))
        return values.expand(2, *self.batch_shape) if expand else values


# For the other discrete estimators: b is 0 or 1 and has these logits, and the draw is made of it.
propc.register_family(Spin, "binary", logits=lambda dist: dist.logits, value=lambda dist, b: 2 * b - 1)


@propc.compile(estimator="enumerate")
def program(theta: Tensor) -> Tensor:
    """Two spins in a row, which like to be the same."""
    x = propc.sample(Spin(theta), "x")
    y = propc.sample(Spin(theta + x), "y")
    return (x * y + y).exp()


def check() -> None:
    """Per-sample gradients against the exact one, in standard errors; straight-through ones are biased."""
    theta = torch.full((100_000,), 0.3, requires_grad=True)
    (exact,) = torch.autograd.grad(program(theta).sum(), theta)
    for estimator in ("lr", "local", "disarm", "arm", "st", "gumbel_softmax"):
        (draws,) = torch.autograd.grad(program.with_estimator(estimator)(theta).sum(), theta)
        away = (draws.mean() - exact[0]).abs() / (draws.std() / len(draws) ** 0.5)
        assert (away > 5) == (estimator in ("st", "gumbel_softmax")), estimator


if __name__ == "__main__":
    check()
