"""Both sides of `benchmarks/discrete.py` against exact gradients: what is compared there is the same estimate."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import discrete
import latents
import oracles
import pytest
import torch
import workloads
from stats import assert_rejected, check
from torch import Tensor, nn
from torch.distributions import Normal

import propc
from propc.runtime.batching.vmapped import VmappedOperation

pytestmark = pytest.mark.statistical

ROWS = 100_000
SIDES = ["by hand", "propc"]


def by_propc(program: Callable[..., Tensor], name: str, **options: Any) -> Callable[..., Tensor]:
    """The side of propc, called as that by hand."""
    estimator = propc.estimator(name, **options)
    return lambda model, x: propc.compile(partial(program, model), estimator=estimator)(x)


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


CLASSES = {
    "by hand, K=1": latents.vae_lr,
    "by hand, K=4": partial(latents.vae_lr, samples=4),
    "plain, K=1": latents.vae_lr_plain,
    "plain, K=4": partial(latents.vae_lr_plain, samples=4),
    "propc, K=1": by_propc(discrete.vae, "lr"),
    "propc, K=4": by_propc(discrete.vae, "lr", samples=4),
}


@pytest.mark.parametrize("side", CLASSES)
def test_score_function_of_classes(side: str) -> None:
    model, x = latents.VAE(2, 3, pixels=5, hidden=4), torch.tensor([[1.0, 0, 0, 1, 1]])
    kl = oracles.gradient(lambda logits: latents.categorical_kl(logits.log_softmax(-1)[None]).sum(), LOGITS)
    draws = logit_draws(CLASSES[side], model, LOGITS, x)
    check(draws, classes(model, x) + kl, twin=1.1)
    assert_rejected(draws - kl, classes(model, x) + kl)


@pytest.mark.parametrize("side", [latents.choice_enumerate, by_propc(discrete.choice, "enumerate")], ids=SIDES)
def test_enumeration(side: Callable[..., Tensor]) -> None:
    """One row is exact already."""
    model, x = latents.Choice(2, 3, context=2, hidden=4), torch.tensor([[0.4, -0.7]])
    draws = logit_draws(side, model, LOGITS, x)[:10]
    torch.testing.assert_close(draws, classes(model, x).expand(10, -1))


@pytest.mark.parametrize("side", [latents.vae_local, by_propc(discrete.coins, "local")], ids=SIDES)
def test_local_expectation(side: Callable[..., Tensor]) -> None:
    model, x = latents.VAE(3, pixels=5, hidden=4), torch.tensor([[1.0, 0, 0, 1, 1]])

    def expectation(logits: Tensor) -> Tensor:
        laws = [torch.stack([torch.sigmoid(-logit), torch.sigmoid(logit)]) for logit in logits]
        loss = oracles.expect_joint(laws, lambda z: model.loss(z.double()[:, None], x)[:, 0])
        return loss + latents.bernoulli_kl(logits[None]).sum()

    draws = logit_draws(side, model, LOGITS[0], x)
    check(draws, oracles.gradient(expectation, LOGITS[0]), twin=1.1)


RELAXED = by_propc(discrete.vae, "gumbel_softmax", temperature=latents.TEMPERATURE)


@pytest.mark.parametrize("side", [latents.vae_gumbel_softmax, RELAXED], ids=SIDES)
def test_relaxed_classes(side: Callable[..., Tensor]) -> None:
    """Of two classes, the relaxed first is σ((l₁ − l₂ + e)/T), e logistic."""
    model, x = latents.VAE(1, 2, pixels=5, hidden=4), torch.tensor([[1.0, 0, 0, 1, 1]])
    logistic = torch.logit((torch.arange(100_000) + 0.5) / 100_000)

    def expectation(logits: Tensor) -> Tensor:
        first = torch.sigmoid((logits[0, 0] - logits[0, 1] + logistic) / latents.TEMPERATURE)
        relaxed = torch.stack([first, 1 - first], -1)[:, None, None]
        return model.loss(relaxed, x).mean() + latents.categorical_kl(logits.log_softmax(-1)[None]).sum()

    logits = LOGITS[:1, :2]
    check(logit_draws(side, model, logits, x), oracles.gradient(expectation, logits))


def test_kl_of_coins_and_of_classes_agree() -> None:
    logits = torch.tensor([[0.3, -1.2]])
    both = torch.stack([logits, torch.zeros_like(logits)], -1).log_softmax(-1)
    torch.testing.assert_close(latents.bernoulli_kl(logits), latents.categorical_kl(both))


CHAINS = {
    "by hand, lr": partial(latents.chain_lr, samples=3),
    "by hand, rp": partial(latents.chain_rp, samples=3),
    "plain, lr": partial(latents.chain_lr_plain, samples=3),
    "plain, rp": partial(latents.chain_rp_plain, samples=3),
    "propc, lr": by_propc(discrete.chain, "lr", samples=3),
    "propc, rp": by_propc(discrete.chain, "rp", samples=3),
}


@pytest.mark.parametrize("side", CHAINS)
def test_chains(side: str) -> None:
    model = latents.Chain(2)
    model.a, model.b = (nn.Parameter(torch.full((ROWS,), value)) for value in (0.9, 0.1))
    gradients = torch.autograd.grad(CHAINS[side](model, torch.full((ROWS,), 0.5)).sum(), [model.a, model.b])

    def expectation(p: Tensor) -> Tensor:
        def after(x: Tensor, f: Callable[[Tensor], Tensor]) -> Tensor:
            return oracles.expect(Normal(torch.tanh(p[0] * x + p[1]), latents.SIGMA), f)

        return after(torch.tensor(0.5), lambda x: after(x, lambda y: (y - 1).square()))

    check(torch.stack(gradients, -1), oracles.gradient(expectation, torch.tensor([0.9, 0.1])))


@pytest.mark.parametrize("workload", workloads.small(), ids=str)
def test_no_program_goes_through_vmap_twice(workload: workloads.Workload, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which would cost more than all else that propc does."""

    def refuse(*args: Any) -> None:
        raise AssertionError("an operation went through vmap")

    program, name, options = discrete.PROGRAMS[workload.kind]
    model = workload.model()
    step = propc.compile(partial(program, model), estimator=propc.estimator(name, **options))
    step(workload.inputs().double())
    monkeypatch.setattr(VmappedOperation, "__call__", refuse)
    step(workload.inputs().double()).mean().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
