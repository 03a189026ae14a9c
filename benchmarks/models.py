"""The chaotic RNN of Proppo (Parmas and Sugiyama 2022), once for propc and by hand.

x' = σ(β·x W) + N(0, 0.001²), loss ½‖1 − x_H‖² per row of the batch. Every rollout here takes
(beta, x0, W, horizon) and returns costs of shape [batch]; the hand-written score-function
version returns its surrogate.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.distributions import Normal

import propc

__all__ = [
    "SIGMA",
    "Problem",
    "by_hand",
    "direct_rp",
    "direct_step",
    "problem",
    "rewarded_rollout",
    "rollout",
    "step",
    "surrogate_lr",
]

SIGMA = 0.001
Rollout = Callable[[Tensor, Tensor, Tensor, int], Tensor]


@dataclass(frozen=True)
class Problem:
    """Arguments of a rollout."""

    beta: Tensor  # scalar leaf
    x0: Tensor  # [batch, dim]
    W: Tensor  # [dim, dim], row vectors times W
    horizon: int


def problem(
    batch: int,
    dim: int,
    horizon: int,
    *,
    beta: float = 2.0,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    trained: bool = False,
) -> Problem:
    """The RNN of the paper for ``dim == 2``, a random one else.

    Rows of the random W have entries of standard deviation 4/√dim: pre-activations are of
    order 1 at any `dim`, so the state neither saturates nor loses its dependence on the past.
    With `trained`, W takes a gradient too.
    """
    if dim == 2:
        weights = torch.tensor([[-5.0, -25.0], [5.0, 25.0]])
        start = torch.tensor([0.35, 0.55])
    else:
        generator = torch.Generator().manual_seed(0)
        weights = torch.randn(dim, dim, generator=generator) * (4.0 / dim**0.5)
        start = torch.rand(dim, generator=generator)
    return Problem(
        beta=torch.tensor(beta, device=device, dtype=dtype, requires_grad=True),
        x0=start.to(device, dtype).expand(batch, dim).contiguous(),
        W=weights.to(device, dtype).requires_grad_(trained),
        horizon=horizon,
    )


def step(fn: Callable[..., Tensor], given: Problem) -> Callable[[], None]:
    """One step of `fn`: clear the gradient, call forward, go backward through the mean."""
    beta, x0, W, horizon = given.beta, given.x0, given.W, given.horizon

    def run() -> None:
        beta.grad = W.grad = None
        fn(beta, x0, W, horizon).mean().backward()

    return run


# ---- the model, written once ------------------------------------------------------------


def rollout(beta: Tensor, x0: Tensor, W: Tensor, horizon: int = 10) -> Tensor:
    """The model as a user of propc writes it."""
    x = x0
    for t in range(horizon):
        x = propc.sample(Normal(torch.sigmoid(beta * (x @ W)), SIGMA), name=f"x{t}")
    return 0.5 * (1 - x).square().sum(-1)


def rewarded_rollout(beta: Tensor, x0: Tensor, W: Tensor, horizon: int = 10) -> Tensor:
    """The same with a reward at every step: a site is charged with the costs after it."""
    x = x0
    total = x0.new_zeros(x0.shape[0])
    for t in range(horizon):
        x = propc.sample(Normal(torch.sigmoid(beta * (x @ W)), SIGMA), name=f"x{t}")
        total = total + 0.5 * (1 - x).square().sum(-1)
    return total


# ---- by hand ----------------------------------------------------------------------------


def idiomatic_rp(beta: Tensor, x0: Tensor, W: Tensor, horizon: int) -> Tensor:
    """Plain PyTorch, reparameterized: the reference of every ratio."""
    x = x0
    for _ in range(horizon):
        x = Normal(torch.sigmoid(beta * (x @ W)), SIGMA).rsample()
    return 0.5 * (1 - x).square().sum(-1)


def direct_step(beta: Tensor, x: Tensor, W: Tensor) -> Tensor:
    """The next state, without distribution objects."""
    mu = torch.sigmoid(beta * (x @ W))
    return mu + SIGMA * torch.randn_like(mu)


def direct_rp(
    beta: Tensor, x0: Tensor, W: Tensor, horizon: int, step: Callable[[Tensor, Tensor, Tensor], Tensor] = direct_step
) -> Tensor:
    """Plain PyTorch, reparameterized without distribution objects: the floor."""
    x = x0
    for _ in range(horizon):
        x = step(beta, x, W)
    return 0.5 * (1 - x).square().sum(-1)


def surrogate_lr(beta: Tensor, x0: Tensor, W: Tensor, horizon: int) -> Tensor:
    """Plain PyTorch score function: a surrogate loss with a leave-one-out baseline."""
    x = x0
    log_prob = x0.new_zeros(x0.shape[0])
    for _ in range(horizon):
        law = Normal(torch.sigmoid(beta * (x @ W)), SIGMA)
        x = law.sample()
        log_prob = log_prob + law.log_prob(x).sum(-1)
    cost = 0.5 * (1 - x).square().sum(-1)
    others = (cost.sum() - cost) / (cost.shape[0] - 1)
    return (cost - others).detach() * log_prob


class _TotalPropagationSite(torch.autograd.Function):
    """x = μ + σε and a token; backward mixes the pathwise and the score cotangent of μ.

    With a `tangent` dμ/dθ the variances are those of per-sample gradients in θ, else those of
    the cotangents themselves.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, mu: Tensor, noise: Tensor, tangent: Tensor | None) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(noise, *([] if tangent is None else [tangent]))
        return torch.add(mu, noise, alpha=SIGMA), mu.new_zeros(mu.shape[0])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, path: Tensor, message: Tensor) -> tuple[Tensor, None, None]:
        noise, *tangents = ctx.saved_tensors
        score = noise * (message / SIGMA).unsqueeze(-1)
        of_score, of_path = (_spread((part * tangents[0]).sum(-1) if tangents else part) for part in (score, path))
        weight = (of_path / (of_path + of_score)).nan_to_num(nan=0.5)
        return torch.lerp(path, score, weight), None, None


def _spread(samples: Tensor) -> Tensor:
    return (samples - samples.mean(0)).square().sum()


class _Cost(torch.autograd.Function):
    """The cost as it is; backward sends w to the path and w·(L − others) to every token."""

    @staticmethod
    def forward(ctx: FunctionCtx, cost: Tensor, *tokens: Tensor) -> Tensor:
        ctx.save_for_backward(cost)
        ctx.count = len(tokens)  # type: ignore[attr-defined]
        return cost.view_as(cost)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, weight: Tensor) -> tuple[Tensor, ...]:
        (cost,) = ctx.saved_tensors
        others = (cost.sum() - cost) / (cost.shape[0] - 1)
        message = weight * (cost - others)
        return (weight, *[message] * ctx.count)


def site_tp(beta: Tensor, x0: Tensor, W: Tensor, horizon: int) -> Tensor:
    """Total propagation at the site by one hand-made autograd node per site."""
    x, tokens = x0, []
    for _ in range(horizon):
        mu = torch.sigmoid(beta * (x @ W))
        x, token = _TotalPropagationSite.apply(mu, torch.randn_like(mu), None)
        tokens.append(token)
    return _Cost.apply(0.5 * (1 - x).square().sum(-1), *tokens)


def target_tp(beta: Tensor, x0: Tensor, W: Tensor, horizon: int) -> Tensor:
    """The same weighted by the gradients in β, whose tangent is derived by hand."""
    x, tokens = x0, []
    for _ in range(horizon):
        drive = x @ W
        mu = torch.sigmoid(beta * drive)
        with torch.no_grad():
            tangent = mu * (1 - mu) * drive
        x, token = _TotalPropagationSite.apply(mu, torch.randn_like(mu), tangent)
        tokens.append(token)
    return _Cost.apply(0.5 * (1 - x).square().sum(-1), *tokens)


def by_hand() -> dict[str, Rollout]:
    """Every hand-written version by name; the first is the reference."""
    return {
        "plain rp": idiomatic_rp,
        "hand rp": direct_rp,
        "hand lr": surrogate_lr,
        "hand tp": site_tp,
        "hand tp[beta]": target_tp,
    }
