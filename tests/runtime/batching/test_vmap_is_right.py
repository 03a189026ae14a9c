"""What goes through `torch.vmap` in plates has the values and derivatives of a loop; two operations did not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import propc
from propc.fx.assignment import assigned, index_filled, select_scattered

pytestmark = pytest.mark.slow  # about the pinned torch: with another one the list of what is wrong may be another

P, B, C = 2, 5, 3
idx = torch.tensor([0, 2, 1, 1, 0])
mask = torch.tensor([True, False, True, True, False])
Operation = Callable[[Tensor, Tensor], Tensor]
# Operations of y [B, C] and u, with the shape of u.
OPERATIONS: dict[str, tuple[Operation, tuple[int, ...]]] = {
    "select_scatter": (lambda y, u: select_scattered(y, u, 1, 0), (B,)),
    "slice_scatter": (lambda y, u: torch.slice_scatter(y, u, 1, 1, 3), (B, 2)),
    "slice_scatter step": (lambda y, u: torch.slice_scatter(y, u, 1, 0, 3, 2), (B, 2)),
    "diagonal_scatter": (lambda y, u: torch.diagonal_scatter(y, u), (3,)),
    "scatter": (lambda y, u: y.scatter(1, idx[:, None], u), (B, 1)),
    "scatter_add": (lambda y, u: y.scatter_add(1, idx[:, None], u), (B, 1)),
    "scatter_reduce": (lambda y, u: y.scatter_reduce(1, idx[:, None], u, "amax"), (B, 1)),
    "index_add": (lambda y, u: y.index_add(0, idx, u), (B, C)),
    "index_copy": (lambda y, u: y.index_copy(0, torch.tensor([0, 2]), u), (2, C)),
    "index_fill": (lambda y, u: index_filled(y, 0, torch.tensor([0, 2]), u), ()),
    "index_put": (lambda y, u: y.index_put((idx,), u), (B, C)),
    "index_put acc": (lambda y, u: y.index_put((idx,), u, accumulate=True), (B, C)),
    "masked_fill": (lambda y, u: y.masked_fill(mask[:, None], u), ()),
    "masked_scatter": (lambda y, u: y.masked_scatter(mask[:, None].expand(B, C), u), (B, C)),
    "where": (lambda y, u: torch.where(mask[:, None], y, u), (B, C)),
    "cat": (lambda y, u: torch.cat([y, u], 1), (B, 1)),
    "lerp": (lambda y, u: torch.lerp(y, u, 0.3), (B, C)),
    "addmm": (lambda y, u: torch.addmm(y, u, y.T @ y), (B, C)),
    "cross": (lambda y, u: torch.linalg.cross(y, u), (B, C)),
    "dist": (lambda y, u: torch.dist(y, u), (B, C)),
    "cdist": (lambda y, u: torch.cdist(y, u), (B, C)),
    "kron": (lambda y, u: torch.kron(y, u), (B, C)),
    "bilinear": (lambda y, u: F.bilinear(y, u, torch.ones(2, C, C).cumsum(0)), (B, C)),
    "prelu": (lambda y, u: F.prelu(y, u), (C,)),
    "embedding": (lambda y, u: F.embedding(idx, u) * y, (3, C)),
    "layer_norm": (lambda y, u: F.layer_norm(y, (C,), u), (C,)),
    "group_norm": (lambda y, u: F.group_norm(y, 1, u), (C,)),
    "solve": (lambda y, u: torch.linalg.solve(u, y.T), (C, C)),
    "tri": (lambda y, u: torch.linalg.solve_triangular(u.tril(), y.T, upper=False), (C, C)),
    "cosine": (lambda y, u: F.cosine_similarity(y, u), (B, C)),
    "maximum": (lambda y, u: torch.maximum(y, u), (B, C)),
    "atan2": (lambda y, u: torch.atan2(y, u), (B, C)),
    "copysign": (lambda y, u: torch.copysign(y, u), (B, C)),
    "hypot": (lambda y, u: torch.hypot(y, u), (B, C)),
    "gather": (lambda y, u: torch.gather(u, 1, idx[:, None]) * y, (B, C)),
    "take_along": (lambda y, u: torch.take_along_dim(u, idx[:, None], 1) * y, (B, C)),
    "scatter2": (lambda y, u: torch.zeros(B, C).scatter(1, idx[:, None], u) * y, (B, 1)),
    "conv1d": (lambda y, u: F.conv1d(y[None], u[None, :, None]), (B,)),
    "fold": (lambda y, u: (y * u).unfold(0, 2, 1), (B, C)),
    "roll": (lambda y, u: (y * u).roll(1, 0), (B, C)),
    "logcumsumexp": (lambda y, u: torch.logcumsumexp(y * u, 1), (B, C)),
    "nll": (lambda y, u: F.cross_entropy(y * u, idx, reduction="none"), (B, C)),
    "put": (lambda y, u: y.put(idx, u), (B,)),
    "tensor_split": (lambda y, u: torch.stack([a.sum() for a in (y * u).tensor_split(2)]), (B, C)),
    "assigned": (lambda y, u: assigned(y, (slice(None), 1), u), (B,)),
    "assigned backwards": (lambda y, u: assigned(y, (..., -1), u), (B,)),
    "assigned block": (lambda y, u: assigned(y, (slice(1, 4, 2), slice(0, 2)), u), (2, 2)),
    "assigned row": (lambda y, u: assigned(y, 2, u), (C,)),
    "assigned masked": (lambda y, u: assigned(y, mask, u.sum()), (B,)),
}


@pytest.mark.filterwarnings("ignore:There is a performance drop", "ignore:An output with one or more elements")
@pytest.mark.parametrize("dims", [(0, None), (None, 0), (0, 0)], ids=str)
@pytest.mark.parametrize("name", OPERATIONS)
def test_as_in_a_loop(name: str, dims: tuple[int | None, int | None]) -> None:
    operation, shape = OPERATIONS[name]
    y, u = (
        torch.randn(size=(*(() if dim is None else (P,)), *own), requires_grad=True)
        for dim, own in zip(dims, ((B, C), shape))
    )

    def element(tensor: Tensor, dim: int | None, i: int) -> Tensor:
        return tensor if dim is None else tensor[i]

    found = torch.vmap(operation, dims)(y, u)
    loop = torch.stack([operation(element(y, dims[0], i), element(u, dims[1], i)) for i in range(P)])
    weights = torch.randn_like(loop)
    torch.testing.assert_close(found, loop)
    grads = [torch.autograd.grad((each * weights).sum(), (y, u)) for each in (found, loop)]
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize("operation", ["select_scatter", "index_fill"])
def test_the_two_in_a_plate(operation: str) -> None:
    def body(x: Tensor, th: Tensor) -> Tensor:
        y = torch.stack([x, x * th, th + 0 * x], 1)
        if operation == "select_scatter":
            return torch.select_scatter(y, 3 * x + th, 1, 0).square().sum(1)
        return y.index_fill(1, torch.tensor([0, 2]), th * 3).square().sum(1) + x

    def program(th: Tensor) -> Tensor:
        return body(propc.sample(torch.distributions.Bernoulli(logits=th.expand(4)), "x"), th)

    th = torch.tensor(0.4, requires_grad=True)
    p = th.sigmoid()
    exact = ((1 - p) * body(torch.zeros(4), th) + p * body(torch.ones(4), th)).mean()
    found = propc.compile(program, estimator="enumerate")(th).mean()
    torch.testing.assert_close(*(torch.autograd.grad(each, th)[0] for each in (found, exact)))
