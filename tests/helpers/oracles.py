"""Slow and exact: expectations by quadrature and enumeration, gradients of those by autograd.

Nothing here samples or imports propc. Expectations are differentiable to any order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Distribution, MixtureSameFamily, Normal, biject_to

Edge = tuple[Any, Any]


def gradient(expectation: Callable[..., Tensor], *params: Tensor) -> Tensor:
    """The exact gradient of ``expectation(*params)``, flattened and joined: [P]."""
    leaves = [p.detach().clone().requires_grad_() for p in params]
    return torch.cat([g.flatten() for g in torch.autograd.grad(expectation(*leaves), leaves)])


def hessian(expectation: Callable[[Tensor], Tensor], param: Tensor) -> Tensor:
    """The exact Hessian [P, P] of ``expectation(param)``."""
    result = torch.autograd.functional.hessian(expectation, param)
    assert isinstance(result, Tensor)
    return result


_dims_in_use: list[int] = []  # of each expectation under evaluation, outermost first


def expect(dist: Distribution, f: Callable[[Tensor], Tensor]) -> Tensor:
    """E[f(x)] for x ~ ``dist``, with univariate events; ``f`` works elementwise, and is smooth.

    Expectations nest: ``expect(p, lambda x: expect(q(x), lambda y: f(x, y)))``. Each puts its
    nodes in a leading dimension of its own, left of those of the expectations around it.

    Sums over finite supports and mixture components, uses Gauss-Hermite for a Normal, and for
    every other law the trapezoidal rule after a map of the support to the real line:
    exponentially accurate for an integrand that is analytic and decays at both ends.
    """
    if isinstance(dist, MixtureSameFamily):
        assert not _dims_in_use, "a mixture stands outside"
        return (dist.mixture_distribution.probs * expect(dist.component_distribution, f)).sum(-1)
    dims = _dims_in_use[-1] if _dims_in_use else len(dist.batch_shape)
    x, weights = _nodes(dist, (-1,) + (1,) * dims)
    _dims_in_use.append(dims + 1)
    try:
        return (weights * f(x)).sum(0)
    finally:
        _dims_in_use.pop()


def _nodes(dist: Distribution, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Nodes of ``dist`` along the first dimension of ``shape``, and their weights."""
    if isinstance(dist, Normal):
        z, weights = _gauss_hermite()
        return dist.loc + dist.scale * z.reshape(shape), weights.reshape(shape)
    if dist.has_enumerate_support:
        x = dist.enumerate_support(expand=False).reshape(shape)
        return x, dist.log_prob(x).exp()
    to_support = biject_to(dist.support)
    t = torch.linspace(-30.0, 30.0, 3001, dtype=torch.float64).reshape(shape)
    x = to_support(t).detach()
    log_weight = dist.log_prob(x) + to_support.log_abs_det_jacobian(t, x).detach() + math.log(60.0 / 3000)
    return x, log_weight.exp()


@lru_cache
def _gauss_hermite(nodes: int = 64) -> tuple[Tensor, Tensor]:
    """Nodes and weights of E[f(z)], z standard normal."""
    z, w = np.polynomial.hermite_e.hermegauss(nodes)
    return torch.from_numpy(z), torch.from_numpy(w) / math.sqrt(2 * math.pi)


def expect_multivariate(loc: Tensor, scale_tril: Tensor, f: Callable[[Tensor], Tensor]) -> Tensor:
    """E[f(x)] for x ~ N(loc, LLᵀ) in D dimensions; ``f`` maps [n, D] to [n]. Product Gauss-Hermite."""
    z, w = _gauss_hermite(32)
    dims = len(loc)
    nodes = torch.cartesian_prod(*[z] * dims).reshape(-1, dims)
    weights = torch.cartesian_prod(*[w] * dims).reshape(-1, dims).prod(-1)
    return (weights * f(loc + nodes @ scale_tril.mT)).sum()


def expect_joint(laws: Sequence[Tensor], f: Callable[[Tensor], Tensor]) -> Tensor:
    """E[f(z)] of independent classes z = (z_1, …, z_D) with probabilities ``laws`` [K_d] each.

    ``f`` maps all outcomes, integers [K_1⋯K_D, D] in lexicographic order, to their values.
    """
    z = torch.cartesian_prod(*(torch.arange(len(law)) for law in laws)).reshape(-1, len(laws))
    return (torch.stack([law[z[:, d]] for d, law in enumerate(laws)]).prod(0) * f(z)).sum()


Choose = Callable[[Distribution], Tensor]


def enumerate_outcomes(model: Callable[[Choose], Tensor]) -> Tensor:
    """E[cost] of a small discrete model by running it once for every outcome.

    ``model(choose)`` calls ``choose(dist)`` at each random choice, on laws with a scalar batch
    (their events may depend on earlier choices), and returns a scalar cost.
    """

    def run(prefix: list[Tensor]) -> Tensor:
        """The expectation over all outcomes that begin with ``prefix``."""
        taken = 0
        log_prob = torch.zeros((), dtype=torch.float64)

        def choose(dist: Distribution) -> Tensor:
            nonlocal taken, log_prob
            if taken == len(prefix):
                raise _Branch(dist)
            value = prefix[taken]
            taken += 1
            log_prob = log_prob + dist.log_prob(value).sum()
            return value

        try:
            cost = model(choose)
            return log_prob.exp() * cost
        except _Branch as branch:
            outcomes = branch.dist.enumerate_support()
            return torch.stack([run([*prefix, value]) for value in outcomes]).sum()

    return run([])


class _Branch(Exception):
    """The model asked for a choice that the replayed outcome does not hold yet."""

    def __init__(self, dist: Distribution) -> None:
        super().__init__("choice")
        self.dist = dist


Path = tuple[Any, ...]


def paths(edges: Iterable[Edge], source: Any, target: Any, *, avoiding: Sequence[Any] = ()) -> list[Path]:
    """Every path from ``source`` to ``target`` in a small DAG that meets no node of ``avoiding`` inside."""
    edges = list(edges)
    found, open_paths = [], [(source,)]
    while open_paths:
        path = open_paths.pop()
        if path[-1] == target:
            found.append(path)
        elif path[-1] == source or path[-1] not in avoiding:
            open_paths += [(*path, head) for tail, head in edges if tail == path[-1]]
    return found


def influences(edges: Iterable[Edge], sites: Iterable[Any], costs: Iterable[Any]) -> set[Edge]:
    """Every (site, cost) such that some path leads from the site to the cost."""
    edges, costs = list(edges), list(costs)
    return {(site, cost) for site in sites for cost in costs if paths(edges, site, cost)}


def direct_influences(edges: Iterable[Edge], sources: Iterable[Any], sites: Iterable[Any]) -> set[Edge]:
    """Every (source, site) joined by a path that meets no other site: the φ that a source feeds."""
    edges, sites = list(edges), list(sites)
    return {(s, n) for s in sources for n in sites if s != n and paths(edges, s, n, avoiding=sites)}


@lru_cache
def chaotic_rnn_gradient(beta: float, horizon: int, noise: float = 0.001) -> float:
    """dE[L]/dβ of the chaotic RNN, x′ = σ(β·x W) + N(0, noise²), L = ½‖1 − x_H‖².

    x W = (x₂ − x₁)·(5, 25): the state enters through one number u = x₂ − x₁ alone. The expected
    loss is carried backwards on a grid over u: blurred by the noise of u, then read at the next u.
    """
    step, edge = 2e-4, 1.2
    half = round(edge / step)
    u = torch.arange(-half, half + 1, dtype=torch.float64) * step
    spread = noise * math.sqrt(2.0)
    reach = math.ceil(7 * spread / step)
    kernel = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) * step / spread) ** 2)
    kernel = (kernel / kernel.sum()).double()

    b = torch.tensor(beta, dtype=torch.float64, requires_grad=True)
    first, second = torch.sigmoid(5 * b * u), torch.sigmoid(25 * b * u)
    value = 0.5 * ((1 - first) ** 2 + (1 - second) ** 2) + noise**2
    position = (second - first + edge) / step
    index = position.detach().floor().long()
    t = position - index
    for _ in range(horizon - 1):
        padded = torch.cat([value[:1].expand(reach), value, value[-1:].expand(reach)])
        blurred = padded.unfold(0, 2 * reach + 1, 1) @ kernel
        p0, p1, p2, p3 = (blurred[index + i] for i in (-1, 0, 1, 2))
        cubic = 2 * p0 - 5 * p1 + 4 * p2 - p3 + t * (3 * (p1 - p2) + p3 - p0)
        value = p1 + 0.5 * t * (p2 - p0 + t * cubic)
    start = value[round((0.55 - 0.35 + edge) / step)]
    return torch.autograd.grad(start, b)[0].item()
