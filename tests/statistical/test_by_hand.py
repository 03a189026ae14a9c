"""The references of `benchmarks/discrete.py`, which decide what a ratio means, against exact gradients."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import oracles
import pytest
import torch
from stats import assert_rejected, check
from torch import Tensor, nn
from torch.distributions import Normal

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
import latents

pytestmark = pytest.mark.statistical

ROWS = 100_000


class Rows(nn.Module):
    """A model whose logits are leaves [rows, *latent], so that each row's gradient is a draw."""

    def __init__(self, model: nn.Module, logits: Tensor) -> None:
        super().__init__()
        self.model = model
        self.latent = model.latent
        self.leaf = logits.expand(ROWS, *logits.shape).clone().requires_grad_()

    def logits(self, x: Tensor) -> Tensor:
        return self.leaf

    def loss(self, z: Tensor, x: Tensor) -> Tensor:
        return self.model.loss(z, x)


def logit_draws(estimator: Callable[..., Tensor], model: nn.Module, logits: Tensor, x: Tensor) -> Tensor:
    """One gradient in the logits a row, [N, P]."""
    rows = Rows(model, logits)
    (gradient,) = torch.autograd.grad(estimator(rows, x.expand(ROWS, -1)).sum(), rows.leaf)
    return gradient.flatten(1)


LOGITS = torch.tensor([[0.3, -0.5, 0.8], [-0.2, 0.6, 0.1]], dtype=torch.float64)


def classes(model: nn.Module, x: Tensor) -> Tensor:
    """The exact gradient in `LOGITS` of the expected loss, [6]."""

    def expectation(logits: Tensor) -> Tensor:
        return oracles.expect_joint(
            logits.softmax(-1).unbind(), lambda z: model.loss(nn.functional.one_hot(z, 3).double()[:, None], x)[:, 0]
        )

    return oracles.gradient(expectation, LOGITS)


@pytest.mark.parametrize("samples", [1, 4])
def test_score_function_of_classes(samples: int) -> None:
    model, x = latents.VAE(2, 3, pixels=5, hidden=4), torch.tensor([[1.0, 0, 0, 1, 1]])
    kl = oracles.gradient(lambda logits: latents.categorical_kl(logits.log_softmax(-1)[None]).sum(), LOGITS)
    draws = logit_draws(lambda m, x: latents.vae_lr(m, x, samples), model, LOGITS, x)
    check(draws, classes(model, x) + kl, twin=1.1)
    assert_rejected(draws - kl, classes(model, x) + kl)


def test_enumeration() -> None:
    """One row is exact already."""
    model, x = latents.Choice(2, 3, context=2, hidden=4), torch.tensor([[0.4, -0.7]])
    draws = logit_draws(latents.choice_enumerate, model, LOGITS, x)[:10]
    torch.testing.assert_close(draws, classes(model, x).expand(10, -1))


def test_local_expectation() -> None:
    model, x = latents.VAE(3, pixels=5, hidden=4), torch.tensor([[1.0, 0, 0, 1, 1]])

    def expectation(logits: Tensor) -> Tensor:
        laws = [torch.stack([torch.sigmoid(-logit), torch.sigmoid(logit)]) for logit in logits]
        loss = oracles.expect_joint(laws, lambda z: model.loss(z.double()[:, None], x)[:, 0])
        return loss + latents.bernoulli_kl(logits[None]).sum()

    draws = logit_draws(latents.vae_local, model, LOGITS[0], x)
    check(draws, oracles.gradient(expectation, LOGITS[0]), twin=1.1)


def test_relaxed_classes() -> None:
    """Of two classes, the relaxed first is σ((l₁ − l₂ + e)/T), e logistic."""
    model, x = latents.VAE(1, 2, pixels=5, hidden=4), torch.tensor([[1.0, 0, 0, 1, 1]])
    logistic = torch.logit((torch.arange(100_000) + 0.5) / 100_000)

    def expectation(logits: Tensor) -> Tensor:
        first = torch.sigmoid((logits[0, 0] - logits[0, 1] + logistic) / latents.TEMPERATURE)
        relaxed = torch.stack([first, 1 - first], -1)[:, None, None]
        return model.loss(relaxed, x).mean() + latents.categorical_kl(logits.log_softmax(-1)[None]).sum()

    logits = LOGITS[:1, :2]
    check(logit_draws(latents.vae_gumbel_softmax, model, logits, x), oracles.gradient(expectation, logits))


def test_kl_of_coins_and_of_classes_agree() -> None:
    logits = torch.tensor([[0.3, -1.2]])
    both = torch.stack([logits, torch.zeros_like(logits)], -1).log_softmax(-1)
    torch.testing.assert_close(latents.bernoulli_kl(logits), latents.categorical_kl(both))


@pytest.mark.parametrize("estimator", [latents.chain_lr, latents.chain_rp])
def test_chains(estimator: Callable[..., Tensor]) -> None:
    model = latents.Chain(2)
    model.a, model.b = (nn.Parameter(torch.full((ROWS,), value)) for value in (0.9, 0.1))
    gradients = torch.autograd.grad(estimator(model, torch.full((ROWS,), 0.5), samples=3).sum(), [model.a, model.b])

    def expectation(p: Tensor) -> Tensor:
        def after(x: Tensor, f: Callable[[Tensor], Tensor]) -> Tensor:
            return oracles.expect(Normal(torch.tanh(p[0] * x + p[1]), latents.SIGMA), f)

        return after(torch.tensor(0.5), lambda x: after(x, lambda y: (y - 1).square()))

    check(torch.stack(gradients, -1), oracles.gradient(expectation, torch.tensor([0.9, 0.1])))
