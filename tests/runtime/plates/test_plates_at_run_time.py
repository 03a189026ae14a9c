"""Plates at run time: the same as a Python loop, in chunks too, with independent and with common noise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Bernoulli, Normal, OneHotCategorical

import propc

BATCH, SAMPLES, WIDTH = 4, 5, 6


class Attention(nn.Module):
    """A batch-first transformer layer, on the input as a sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(2, 1, 4, dropout=0.0, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.unflatten(1, (3, 2))).flatten(1)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.LSTM(2, 3, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.unflatten(1, (3, 2)))[0].flatten(1)


class Own(torch.autograd.Function):
    """A user's function, with its own derivative."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.sin()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return 2 * grad * ctx.saved_tensors[0].cos()


class Odd(nn.Module):
    """Operations that have no rule, or work in place."""

    def forward(self, x: Tensor) -> Tensor:
        y = x.clone()
        y += Own.apply(x)
        return torch.cdist(y.unflatten(1, (3, 2)), x.unflatten(1, (3, 2))).flatten(1)


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "mlp": lambda: nn.Sequential(nn.Linear(WIDTH, 7), nn.LayerNorm(7), nn.GELU(), nn.Linear(7, 3)),
    "convolution": lambda: nn.Sequential(
        nn.Unflatten(1, (1, 2, 3)), nn.Conv2d(1, 3, 2, padding=1), nn.GroupNorm(3, 3), nn.MaxPool2d(2), nn.Flatten()
    ),
    "attention": Attention,
    "recurrent": Recurrent,
    "odd": Odd,
    "batch norm": lambda: nn.BatchNorm1d(WIDTH).eval(),
}


def program(network: nn.Module, estimator: Any, **options: Any) -> Any:
    @propc.compile(estimator=estimator, **options)
    def model(theta: Tensor) -> Tensor:
        x = propc.sample(Normal(theta.expand(BATCH, WIDTH), 0.7), "x")
        y = propc.sample(Normal(network(x), 0.3), "y")
        return (y * x.sum(-1, keepdim=True)).square().sum(-1) + theta.sum()

    return model


def by_loop(network: nn.Module, theta: Tensor) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """The costs of all samples, with their draws and log-probabilities, one after the other; from the same noise."""
    noise = torch.randn(SAMPLES, BATCH, WIDTH)
    with torch.no_grad():
        later = torch.randn(SAMPLES, *network(noise[0]).shape)
    costs, xs, ys = [], [], []
    for first, second in zip(noise, later):
        x = theta.expand(BATCH, WIDTH) + first * 0.7
        y = network(x) + second * 0.3
        costs.append((y * x.sum(-1, keepdim=True)).square().sum(-1) + theta.sum())
        xs.append(x)
        ys.append(y)
    return torch.stack(costs), xs, ys


def gradients(loss: Tensor, theta: Tensor, network: nn.Module) -> list[Tensor]:
    return list(torch.autograd.grad(loss, [theta, *network.parameters()], allow_unused=True, materialize_grads=True))


# -- the same as a loop ---------------------------------------------------------------------


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("chunk", [None, 2])
def test_pathwise_samples_equal_a_loop(name: str, chunk: int | None) -> None:
    network, theta = NETWORKS[name](), torch.linspace(-1, 1, WIDTH).requires_grad_()
    torch.manual_seed(1)
    found = program(network, propc.estimator("rp", samples=SAMPLES), chunk=chunk)(theta)
    torch.manual_seed(1)
    costs, _, _ = by_loop(network, theta)
    torch.testing.assert_close(found, costs.mean(0))
    torch.testing.assert_close(gradients(found.sum(), theta, network), gradients(costs.mean(0).sum(), theta, network))


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("chunk", [None, 2])
def test_score_function_samples_equal_a_loop(name: str, chunk: int | None) -> None:
    """A surrogate loss with the leave-one-out baseline, by hand."""
    network, theta = NETWORKS[name](), torch.linspace(-1, 1, WIDTH).requires_grad_()
    torch.manual_seed(1)
    found = program(network, propc.estimator("lr", samples=SAMPLES), chunk=chunk)(theta)
    torch.manual_seed(1)
    with torch.no_grad():
        costs, xs, ys = by_loop(network, theta)
    surrogate = theta.new_zeros(BATCH)
    others = (costs.sum(0) - costs) / (SAMPLES - 1)
    for cost, other, x, y in zip(costs, others, xs, ys):
        logp = Normal(theta.expand(BATCH, WIDTH), 0.7).log_prob(x).sum(-1)
        logp = logp + Normal(network(x), 0.3).log_prob(y).sum(-1)
        surrogate = surrogate + ((cost - other) * logp + theta.sum()) / SAMPLES
    torch.testing.assert_close(found.detach(), costs.mean(0))
    torch.testing.assert_close(gradients(found.sum(), theta, network), gradients(surrogate.sum(), theta, network))


@pytest.mark.parametrize("name", NETWORKS)
def test_rules_equal_recorded_vmap(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    network, theta = NETWORKS[name](), torch.linspace(-1, 1, WIDTH).requires_grad_()
    estimator = {"x": "rp", "y": propc.estimator("lr", samples=SAMPLES)}

    def run() -> list[Tensor]:
        torch.manual_seed(1)
        loss = program(network, {"x": propc.estimator("rp", samples=3), "y": estimator["y"]})(theta)
        return [loss.detach(), *gradients(loss.sum(), theta, network)]

    first = run()
    if name in ("recurrent", "attention"):  # which vmap cannot run, or only element by element, with a warning
        return
    monkeypatch.setattr("propc.runtime.batching.lifted_code.write", lambda step: None)
    torch.testing.assert_close(run(), first)


# -- chunks ---------------------------------------------------------------------------------


def latent(**options: Any) -> Any:
    network = nn.Sequential(nn.Linear(4, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 1))

    @propc.compile(**options)
    def model(theta: Tensor, noise: float = 0.0) -> Tensor:
        z = propc.sample(Bernoulli(logits=theta.expand(BATCH, 4)), "z")
        hidden = z + noise * torch.rand(BATCH, 4) if noise else z
        x = propc.sample(Normal(network(hidden).squeeze(-1), 1.0), "x", estimator="rp")
        return F.softplus(x) + network(z * x[:, None]).squeeze(-1)

    return model


CHUNKED = {
    "enumerate": lambda chunk: propc.estimator("enumerate", chunk=chunk),
    "lr": lambda chunk: propc.estimator("lr", samples=16, chunk=chunk),
    "disarm": lambda chunk: propc.estimator("disarm", samples=8, chunk=chunk),
    "local": lambda chunk: propc.estimator("local", chunk=chunk),
    "common": lambda chunk: propc.estimator("lr", samples=16, chunk=chunk, noise="common"),
}


@pytest.mark.parametrize("noise", [0.0, 0.5])
@pytest.mark.parametrize("name", CHUNKED)
def test_chunks_change_nothing(name: str, noise: float) -> None:
    """Values and gradients, with the random numbers of sites and of the program itself."""
    theta = torch.linspace(-1, 1, 4).requires_grad_()
    found = []
    for chunk in (None, 16, 7, 1):
        torch.manual_seed(0)
        model = latent(estimator={"z": CHUNKED[name](chunk)})
        torch.manual_seed(1)
        loss = model(theta, noise)
        found.append([loss.detach(), *torch.autograd.grad(loss.mean(), theta)])
    for other in found[1:]:
        torch.testing.assert_close(other, found[0])


def test_chunks_and_what_is_written_into_later() -> None:
    """Nothing of a tensor that another segment writes into is computed again, when it holds something else."""

    def model(theta: Tensor) -> Tensor:
        z = propc.sample(Bernoulli(logits=theta), "z")
        seen = z.tanh().clone()
        x = propc.sample(Bernoulli(logits=(seen + theta).sin()), "x")
        seen.mul_(0.5)
        return x * (seen + theta).cos()

    found = []
    for chunk in (None, 2):
        theta = torch.full((BATCH,), 0.3, dtype=torch.float64, requires_grad=True)
        compiled = propc.compile(model, estimator={"z": propc.estimator("lr", samples=SAMPLES), "x": "lr"}, chunk=chunk)
        torch.manual_seed(0)
        found += torch.autograd.grad(compiled(theta).sum(), theta)
    torch.testing.assert_close(found[1], found[0])


def test_chunks_under_second_derivatives() -> None:
    theta = torch.linspace(-1, 1, 4).requires_grad_()
    found = []
    for chunk in (None, 3):
        torch.manual_seed(0)
        model = latent(estimator={"z": "enumerate"}, chunk=chunk)
        torch.manual_seed(1)
        (gradient,) = torch.autograd.grad(model(theta).mean(), theta, create_graph=True)
        found.append(torch.autograd.grad(gradient.square().sum(), theta))
    torch.testing.assert_close(*found)


def saved(run: Callable[[], Tensor]) -> int:
    """Bytes that autograd keeps for the reverse pass."""
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = run()
    assert loss.requires_grad
    return sum(kept.values())


def test_chunks_take_less_memory() -> None:
    """Of 4096 configurations, what lies between the site and the cost is never held at once."""
    network = nn.Sequential(nn.Linear(12, 256), nn.Tanh(), nn.Linear(256, 256), nn.Tanh(), nn.Linear(256, 1))

    def model(theta: Tensor) -> Tensor:
        z = propc.sample(OneHotCategorical(logits=theta.expand(2, 12, 2)), "z")
        return network(z[..., 0]).squeeze(-1)

    theta = torch.zeros(12, 2, requires_grad=True)
    compiled = [propc.compile(model, estimator="enumerate", chunk=chunk) for chunk in (None, 256)]
    (wanted,), (gradient,) = (torch.autograd.grad(each(theta).sum(), theta) for each in compiled)
    torch.testing.assert_close(gradient, wanted)
    whole, chunked = (saved(lambda: each(theta).sum()) for each in compiled)  # noqa: B023
    hidden = 4096 * 2 * 256 * 8  # the activations of one layer
    assert whole > 2 * hidden
    assert chunked < hidden


# -- noise ----------------------------------------------------------------------------------


def spread_of_later_draws(estimator: Any, network: Callable[[Tensor], Tensor] = lambda z: z * 0) -> Tensor:
    """The variance over a plate of what a later site, and the program itself, draw; 0 if it is the same."""

    @propc.compile(estimator={"z": estimator, "x": "rp"})
    def model(theta: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        z = propc.sample(Bernoulli(logits=theta.expand(BATCH, 3)), "z")
        x = propc.sample(Normal(network(z), 1.0), "x").sum(-1)
        own = torch.rand(BATCH, 3).sum(-1) + (z * 0).sum(-1)
        return x, x.square(), own, own.square()

    mean, square, own, own_square = model(torch.zeros(3, requires_grad=True))
    return torch.stack([square - mean.square(), own_square - own.square()]).detach()


@pytest.mark.parametrize("name", ["lr", "enumerate", "disarm"])
def test_common_noise(name: str) -> None:
    """Later draws come from the same random numbers in every element of the plate, and rows still differ."""
    options = {} if name == "enumerate" else {"samples": 4}
    assert (spread_of_later_draws(propc.estimator(name, **options)) > 1e-4).all()
    common = spread_of_later_draws(propc.estimator(name, noise="common", **options))
    torch.testing.assert_close(common, torch.zeros(2, BATCH), atol=1e-9, rtol=0)


def test_common_noise_is_noise() -> None:
    """A new one at each call, and in each row."""

    @propc.compile(estimator={"z": propc.estimator("enumerate", noise="common"), "x": "rp"})
    def model(theta: Tensor) -> Tensor:
        z = propc.sample(Bernoulli(logits=theta.expand(BATCH)), "z")
        return propc.sample(Normal(z, 1.0), "x")

    theta = torch.zeros((), requires_grad=True)
    first, second = model(theta), model(theta)
    assert len({*first.tolist(), *second.tolist()}) == 2 * BATCH


def test_common_noise_helps_to_compare() -> None:
    """The difference of two values of a site has less variance if what follows draws the same."""
    variances = []
    for noise in ("independent", "common"):

        @propc.compile(estimator={"z": propc.estimator("enumerate", noise=noise), "x": "rp"})
        def model(theta: Tensor) -> Tensor:
            z = propc.sample(Bernoulli(logits=theta), "z")
            return propc.sample(Normal(z, 3.0), "x").square()

        theta = torch.zeros(20_000, requires_grad=True)
        (gradient,) = torch.autograd.grad(model(theta).sum(), theta)
        assert abs(gradient.mean() - 0.25) < 0.2
        variances.append(gradient.var())
    assert variances[1] < 0.5 * variances[0]
