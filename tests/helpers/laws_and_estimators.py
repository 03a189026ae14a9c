"""Programs and estimators on which backends must agree."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import zoo
from torch import Tensor
from torch.distributions import (
    Bernoulli,
    Beta,
    Categorical,
    Dirichlet,
    Gamma,
    Independent,
    MixtureSameFamily,
    MultivariateNormal,
    Normal,
    OneHotCategorical,
    Poisson,
    TransformedDistribution,
)
from torch.distributions.transforms import AffineTransform, SigmoidTransform
from torch.nn.functional import dropout, softplus

import propc

sample, estimator = propc.sample, propc.estimator
B = 7  # odd: the halves of crossfit differ


def lr(samples: int = 1, **options: Any) -> Any:
    return estimator("lr", samples=samples, **options)


def vimco(samples: int = 3, **options: Any) -> Any:
    return estimator("vimco", samples=samples, **options)


def costs_on_the_way(theta: Tensor, x: Tensor) -> Tensor:
    """Three steps, with a cost at each."""
    total: Any = 0
    for t in range(3):
        mean = torch.tanh(x * theta)
        x = sample(Normal(mean, softplus(theta).expand_as(mean)), f"x{t}")
        total = total + propc.cost(torch.sin(x).sum(-1), f"c{t}")
    return total


def shapeable(theta: Tensor, x: Tensor) -> Tensor:
    return torch.cos(zoo.chain(zoo.autoregression(theta, 0.3), x, 2)).sum(-1)


def fixed_scale(theta: Tensor, x: Tensor) -> Tensor:
    return torch.cos(zoo.chain(zoo.autoregression(theta, 0.3), x, 3)).sum(-1)


def bits(theta: Tensor, x: Tensor) -> Tensor:
    z = sample(Bernoulli(logits=theta * x), "z")
    y = sample(Bernoulli(logits=theta.sum() * z), "y")
    return propc.cost(torch.cos(z + x).sum(-1), "first") + propc.cost((y * theta).square().sum(-1), "second")


def vectors(theta: Tensor, x: Tensor) -> Tensor:
    """One-hot."""
    z = sample(OneHotCategorical(logits=theta * x), "z")
    return torch.cos((z * x).sum(-1)) + (z @ theta).square()


def classes(theta: Tensor, x: Tensor) -> Tensor:
    z = sample(Categorical(logits=theta * x), "z")
    return torch.cos(z * theta.sum()) + x.gather(-1, z[:, None]).squeeze(-1)


def both(theta: Tensor, x: Tensor) -> Tensor:
    z = sample(Bernoulli(logits=theta * x), "z")
    y = sample(Normal((z * x * theta).sum(-1), 0.5), "y")
    return torch.sin(y) + z.sum(-1)


def bounded(theta: Tensor, x: Tensor) -> Tensor:
    q = Bernoulli(logits=theta * x)
    z = sample(q, "z")
    return -propc.bound(torch.cos((z * theta).sum(-1)) - q.log_prob(z).sum(-1))


def elements(theta: Tensor, x: Tensor) -> Tensor:
    shared = sample(Normal(theta[:1].expand(len(x), 1), 1.0), "shared")
    with propc.plate("data", dim=1):
        z = sample(Bernoulli(logits=theta * x + shared), "z")
        loss = propc.cost((z * shared - x).square(), "loss")
    return loss.sum(1) + shared.square().squeeze(1)


CHAIN = {
    "infer": "infer",
    "rp": "rp",
    "lr": "lr",
    "lr-none": estimator("lr", baseline=None),
    "lr-moving": estimator("lr", baseline="moving_average"),
    "lr-callable": estimator("lr", baseline=lambda costs: costs.roll(1)),
    "lr-samples": estimator("lr", samples=3),
    "lr-chunk": estimator("lr", samples=4, chunk=2),
    "rloo": estimator("rloo", samples=3),
    "rp-samples": estimator("rp", samples=3),
    "mvd": {"x1": "mvd", "*": "lr"},
    "tp": "tp",
    "tp-same": estimator("tp", weights="same"),
    "tp-past": estimator("tp", weights="past"),
    "tp-per-coordinate": estimator("tp", per_coordinate=True),
    "tp-interval": estimator("tp", k_interval=2),
    "tp-none": estimator("tp", baseline=None),
    "tp-moving": estimator("tp", baseline="moving_average"),
    "tp-target": estimator("tp", target="theta"),
    "tp-target-same": estimator("tp", target="theta", weights="same"),
    "combine": estimator("combine", estimators=("rp", "lr", estimator("lr", baseline=None))),
    "combine-target": estimator("combine", estimators=("lr", "rp"), target="theta", weights="past"),
    "mixed": {"x0": "tp", "x1": "lr", "x2": "rp"},
    "mixed-scores": {"x0": "rp", "x1": estimator("lr", baseline="moving_average"), "x2": "lr"},
    "mixed-moving": {"x0": estimator("lr", baseline="moving_average"), "x1": "tp", "x2": "rp"},
    "mixed-past": {"x0": "rp", "x1": estimator("tp", weights="past"), "x2": "lr"},
}
SHAPED = {
    "gs": estimator("gs", at="x1"),
    "gs-tp": estimator("gs-tp", at="x1"),
    "gr": estimator("gr", at="x0"),
}
FIXED = {name: CHAIN[name] for name in ("tp", "tp-same", "tp-per-coordinate", "combine", "tp-target")}
BITS = {
    "lr": "lr",
    "infer": "infer",
    "lr-samples": estimator("lr", samples=3),
    "enumerate": {"z": "enumerate", "y": "lr"},
    "enumerate-chunk": {"z": estimator("enumerate", chunk=3), "y": "lr"},
    "local": {"z": "local", "y": "lr"},
    "mvd": {"z": "mvd", "y": "lr"},
    "arm": "arm",
    "disarm": "disarm",
    "gumbel_softmax": estimator("gumbel_softmax", temperature=0.7),
    "gumbel_softmax-annealed": estimator("gumbel_softmax", temperature=lambda calls: 0.9**calls),
    "st": "st",
    "st_gumbel": "st_gumbel",
    "gumbel_rao": estimator("gumbel_rao", samples=3),
    "reinmax": "reinmax",
    "rloo": "rloo",
    "mixed": {"z": "st", "y": "lr"},
}
VECTORS = {
    name: BITS[name] for name in ("lr", "gumbel_softmax", "st", "st_gumbel", "gumbel_rao", "reinmax", "rloo")
} | {"enumerate": "enumerate", "local": "local"}
CLASSES = {"lr": "lr", "enumerate": "enumerate", "local": "local", "mvd": "mvd", "rloo": "rloo", "infer": "infer"}
BOTH = {
    "infer": "infer",
    "lr": "lr",
    "enumerate-rp": {"z": "enumerate", "y": "rp"},
    "enumerate-tp": {"z": "enumerate", "y": "tp"},
    "local-lr": {"z": "local", "y": "lr"},
    "arm-lr": {"z": "arm", "y": "lr"},
    "st-rp": {"z": "st", "y": "rp"},
    "st-tp": {"z": "st", "y": "tp"},
}
BOUNDED = {
    "vimco": estimator("vimco", samples=3),
    "vimco-chunk": estimator("vimco", samples=4, chunk=2),
    "lr": estimator("lr", samples=3),
    "enumerate": "enumerate",
}
ELEMENTS = {
    "lr": "lr",
    "samples": estimator("lr", samples=3),
    "mixed": {"shared": "rp", "z": "lr"},
    "tp": {"shared": "tp", "z": "lr"},
}


def point(*values: float) -> Tensor:
    return torch.tensor(values, requires_grad=True)


def theta() -> Tensor:
    """What the programs here are tried at."""
    return point(0.5, -0.3, 0.8)


def rows(batch: int, width: int = 3, dtype: torch.dtype | None = None) -> Tensor:
    return torch.linspace(-1.0, 1.3, batch * width, dtype=dtype).reshape(batch, width)


ESTIMATED: dict[str, tuple[Callable[..., Any], Any]] = {
    f"{program.__name__}-{name}": (program, choice)
    for program, choices in (
        (costs_on_the_way, CHAIN),
        (shapeable, SHAPED),
        (fixed_scale, FIXED),
        (bits, BITS),
        (vectors, VECTORS),
        (classes, CLASSES),
        (both, BOTH),
        (bounded, BOUNDED),
        (elements, ELEMENTS),
    )
    for name, choice in choices.items()
}


def spread(theta: Tensor) -> Tensor:
    return softplus(theta) + 0.3


LAWS: dict[str, Callable[[Tensor], torch.distributions.Distribution]] = {
    "normal": lambda p: Normal(p, spread(p)),
    "independent": lambda p: Independent(Normal(p, spread(p)), 1),
    "multivariate": lambda p: MultivariateNormal(p, scale_tril=torch.diag_embed(spread(p))),
    "covariance": lambda p: MultivariateNormal(p, torch.diag_embed(spread(p)) + 0.1),
    "gamma": lambda p: Gamma(spread(p), spread(-p)),
    "beta": lambda p: Beta(spread(p), spread(-p)),
    "dirichlet": lambda p: Dirichlet(spread(p)),
    "transformed": lambda p: TransformedDistribution(Normal(p, 1.0), [AffineTransform(0.1, 2.0), SigmoidTransform()]),
    "nested": lambda p: Independent(
        TransformedDistribution(Independent(Normal(p, spread(p)), 0), SigmoidTransform()), 1
    ),
    "poisson": lambda p: Poisson(spread(p)),
    "mixture": lambda p: MixtureSameFamily(
        Categorical(logits=p), Normal(torch.stack([p[..., 0], p[..., 1], p[..., 2] - 1], -1), spread(p))
    ),
}
REPARAMETERIZED = sorted(set(LAWS) - {"poisson", "mixture"})


def noise(theta: Tensor, x: Tensor) -> Any:
    """Draws that are no sites, before and between sites, in one stage and across them."""
    h = dropout(x * theta, 0.5, training=True) + torch.randn(3)
    z = propc.sample(Normal(h, torch.rand(()) + 0.5), "z")
    y = propc.sample(Bernoulli(logits=z + torch.randn_like(z)), "y")
    return (torch.cos(z + y) * torch.bernoulli(torch.full_like(z, 0.5))).sum(-1) + torch.randn(len(x)) * h.sum(-1)


def integers(theta: Tensor, x: Tensor) -> Any:
    """Integers and truths on edges between stages."""
    k = propc.sample(Categorical(logits=theta * x), "k")
    chosen, high = x.argsort(-1).gather(-1, k[:, None])[:, 0], k > 0
    z = propc.sample(Normal(theta[chosen] + high, 1.0), "z")
    y = propc.sample(Normal(torch.where(high, z, -z), 1.0), "y")
    return propc.cost(y.sin() * chosen, "cost") + z, k, high
