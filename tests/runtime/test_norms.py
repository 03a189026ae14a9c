"""Variances at a weighting target by one reverse traversal, against loops of `torch.autograd.grad` over samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from surrogate import Plain, seeded
from torch import Tensor, nn
from torch.distributions import Gamma, Independent, Normal

import propc
from propc.ir import Expand
from propc.propagators import InverseVariance
from propc.runtime.norms import Norms

BATCH, DIM = 7, 3
Seen = dict[tuple[int, ...], list[tuple[list[Tensor], int, Tensor]]]
Cotangents = list[tuple[InverseVariance, list[Tensor], int, Tensor]]


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[Tensor], int, Tensor]]:
    """Cotangents, number of groups and variances wherever a traversal takes some, the last site first."""
    found: list[tuple[list[Tensor], int, Tensor]] = []
    variances = Norms.variances

    def spy(norms: Norms, cotangents: Sequence[Tensor], made: Sequence[Tensor], groups: int) -> Tensor:
        result = variances(norms, cotangents, made, groups)
        found.append((list(cotangents), groups, result.clone()))
        return result

    monkeypatch.setattr(Norms, "variances", spy)
    return found


def per_sample(phi: Sequence[Tensor], cotangents: Sequence[Tensor], targets: Sequence[Tensor], own: bool) -> Tensor:
    """Gradients of single samples, [parts, batch, P]; `own` says that a target has a row for each sample."""
    found = []
    for part in range(len(cotangents[0])):
        for row in range(len(phi[0])):
            ends, grads = [p[row] for p in phi], [c[part, row] for c in cotangents]
            each = torch.autograd.grad(ends, targets, grads, retain_graph=True, allow_unused=True)
            parts = [torch.zeros_like(t) if g is None else g for g, t in zip(each, targets)]
            found.append(torch.cat([(p[row] if own else p).flatten() for p in parts]))
    return torch.stack(found).unflatten(0, (len(cotangents[0]), -1))


def deviations(grads: Tensor, groups: int) -> Tensor:
    """[parts, groups]."""
    rows = grads.shape[1] // groups
    grads = grads[:, : rows * groups].unflatten(1, (groups, rows))
    return (grads - grads.mean(2, keepdim=True)).square().sum((2, 3))


class Layers(nn.Module):
    """A network between states, and whatever else a test needs, under one name."""

    def __init__(self, step: Callable[..., Any], width: int = 4, **parameters: Tensor) -> None:
        super().__init__()
        self.step = step
        self.net = nn.Module()
        self.net.first, self.net.last = nn.Linear(DIM, width), nn.Linear(width, 2 * DIM, bias=False)
        for name, value in parameters.items():
            self.net.register_parameter(name, nn.Parameter(value))

    def forward(self, x: Tensor, sample: Any = propc.sample) -> Tensor:
        for t in range(2):
            x = sample(self.step(self.net, x), f"x{t}")
        return (x.square() + x.sin()).flatten(1).sum(-1)


def mlp(net: Any, x: Tensor) -> Any:
    return Normal(net.last(torch.tanh(net.first(x)))[:, :DIM], 0.3)


def both_phi(net: Any, x: Tensor) -> Any:
    """loc and scale come from one network."""
    loc, scale = net.last(torch.relu(net.first(x))).chunk(2, -1)
    return Independent(Normal(x + 0.1 * loc, F.softplus(scale)), 1)


def by_product(net: Any, x: Tensor) -> Any:
    """Matrices and biases without layers, one of them transposed, one by two functions."""
    h = torch.addmm(net.first.bias, x, net.first.weight.t())
    return Normal((h.tanh() @ net.last.weight.T)[..., :DIM], 0.5)


def matrix(net: Any, x: Tensor) -> Any:
    return Normal(torch.matmul(torch.sin(x @ net.w + net.b), net.v), 0.5)


def twice(net: Any, x: Tensor) -> Any:
    """One layer is used twice in a step, with what is between."""
    h = net.first(x)
    return Normal(h[:, :DIM] + net.first(torch.tanh(h[:, 1:]))[:, :DIM], 0.5)


def tied(net: Any, x: Tensor) -> Any:
    """The same matrix there and back."""
    return Normal(F.linear(torch.tanh(F.linear(x, net.w)), net.w.mT), 0.4)


def spread(net: Any, x: Tensor) -> Any:
    """Parameters that multiply, add, or are functions of others; a scale without a row for each sample."""
    scale = F.softplus(net.rho).expand(len(x), DIM)
    return Normal(torch.tanh(net.gain * x) * net.log.exp() + net.b - net.gain.sum(), scale)


def between(net: Any, x: Tensor) -> Any:
    """Dimensions between batch and features: few long rows, and many short ones."""
    many = x[:, :, None] * torch.linspace(-1, 1, 12)  # [batch, 3, 12]
    h = torch.tanh(F.linear(many, net.long))  # [batch, 3, 2]
    k = torch.cos(F.linear(h[..., None], net.short, net.b))  # [batch, 3, 2, 2]
    return Normal(k.sum((2, 3)), 0.5)


def other_family(net: Any, x: Tensor) -> Any:
    a, b = F.softplus(net.last(torch.tanh(net.first(x)))).chunk(2, -1)
    return Gamma(a + 0.5, b + 0.5)


CASES: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "mlp": (mlp, {}),
    "wide": (mlp, {"width": 40}),  # more products than pairs of rows
    "both": (both_phi, {}),
    "by product": (by_product, {}),
    "matrix": (matrix, {"w": (DIM, 5), "b": (5,), "v": (5, DIM)}),
    "twice": (twice, {}),
    "tied": (tied, {"w": (5, DIM)}),
    "spread": (spread, {"rho": (DIM,), "gain": (DIM,), "log": (), "b": (1, DIM)}),
    "between": (between, {"long": (2, 12), "short": (2, 1), "b": (2,)}),
    "gamma": (other_family, {}),
}


def model(case: str) -> Layers:
    step, options = CASES[case]
    shapes = {name: torch.randn(shape) for name, shape in options.items() if name != "width"}
    return Layers(step, options.get("width", 4), **shapes)


@pytest.mark.parametrize("how", ["same", "crossfit", "past"])
@pytest.mark.parametrize("case", CASES)
def test_variances(case: str, how: str, taken: list[Any]) -> None:
    """Exact for all parameters of a module, at every site and for both parts."""
    net, x = model(case), torch.rand(BATCH, DIM) + 0.5
    compiled = propc.compile(net, estimator=propc.estimator("tp", target="net", weights=how))
    expands = compiled.graph(x).of(Expand)
    assert [(e.norms, e.directions) for e in expands] == [(True, 0)] * 2
    seeded(compiled, x)[0].sum().backward()
    plain = Plain()
    seeded(net, x, plain)
    targets = [p for name, p in net.named_parameters() if name.startswith("net.")]
    assert len(taken) == (4 if how == "past" else 2)  # the first batch has no past, and takes crossfit
    for i, (cotangents, groups, result) in enumerate(taken):
        dist = plain.dists["x0" if i >= len(taken) // 2 else "x1"]
        phi = values_of(dist)[-len(cotangents) :] if case == "spread" else values_of(dist)[: len(cotangents)]
        expected = deviations(per_sample(phi, cotangents, targets, own=False), groups)
        assert groups == (1 if how == "same" or (how == "past" and i % 2 == 0) else 2)
        torch.testing.assert_close(result[:, :, 0, 0], expected, rtol=1e-9, atol=0)


def values_of(dist: Any) -> list[Tensor]:
    """φ, in the order of a site."""
    dist = dist.base_dist if isinstance(dist, Independent) else dist
    return [getattr(dist, name) for name in ("loc", "scale", "concentration", "rate") if name in vars(dist)]
