"""What is said of operations by their structure is so: moving one row moves that row of the result alone."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.fx
from torch import Tensor
from torch.nn import functional

from propc.fx.separate_rows import NOWHERE, UNPROVEN, place_in
from propc.types import TensorType

X = torch.rand(4, 5, 6, dtype=torch.float64)
W, V = torch.rand(3, 6).to(X), torch.rand(6).to(X)
PROVEN: dict[str, tuple[Callable[[Tensor], Tensor], int]] = {
    "arithmetic": (lambda x: (x * 2 - V) / (1 + x.square()), 0),
    "compared": (lambda x: torch.where(x > 0.5, x, -x), 0),
    "layer": (lambda x: functional.linear(x, W).tanh().relu(), 0),
    "norm": (lambda x: functional.layer_norm(x, (5, 6)), 0),
    "transposed": (lambda x: x.transpose(0, 1), 1),
    "permuted": (lambda x: x.permute(1, 2, 0).exp(), 2),
    "moved": (lambda x: x.movedim(0, 1), 1),
    "flattened": (lambda x: x.flatten(1), 0),
    "viewed": (lambda x: x.reshape(4, 2, 15), 0),
    "summed": (lambda x: x.sum(1), 0),
    "summed behind": (lambda x: x.permute(1, 0, 2).sum(0), 0),
    "kept": (lambda x: x.mean(2, keepdim=True), 0),
    "largest": (lambda x: torch.max(x, 2)[0], 0),
    "softmax": (lambda x: x.softmax(-1), 0),
    "sliced": (lambda x: x[:, 1:3], 0),
    "chosen": (lambda x: x[..., 0], 0),
    "new front": (lambda x: x[None, :, 2], 1),
    "unsqueezed": (lambda x: x.unsqueeze(0) + 1, 1),
    "stacked": (lambda x: torch.stack([x, x + 1], 0), 1),
    "joined": (lambda x: torch.cat([x, x * 2], 1), 0),
    "product": (lambda x: x @ W.T, 0),
    "product of rows": (lambda x: x @ x.transpose(1, 2), 0),
    "product on the right": (lambda x: W @ x.transpose(1, 2), 0),
    "with a vector": (lambda x: x @ V, 0),
    "einsum": (lambda x: torch.einsum("bij,kj->kbi", x, W), 1),
    "broadcast": (lambda x: x[:, 0, 0].unsqueeze(1) * V, 0),
    "gathered": (lambda x: x.gather(2, torch.zeros(4, 5, 1, dtype=torch.long)), 0),
    "running": (lambda x: x.cumsum(1), 0),
    "flipped": (lambda x: x.flip(2), 0),
    "looked up": (lambda x: torch.arange(9.0)[(x * 8).long()], 0),
    "losses": (lambda x: functional.mse_loss(x, x * 0, reduction="none"), 0),
    "convolution": (lambda x: functional.conv1d(x, torch.ones(2, 5, 3, dtype=torch.float64)), 0),
    "split": (lambda x: x.split(2, 2)[1], 0),
    "entropy": (lambda x: functional.cross_entropy(x, torch.zeros(4, 6, dtype=torch.long), reduction="none"), 0),
}
NOT: dict[str, Callable[[Tensor], Tensor]] = {
    "all": lambda x: x - x.mean(),
    "over rows": lambda x: x.sum(0),
    "softmax": lambda x: x.softmax(0),
    "rolled": lambda x: x.roll(1, 0),
    "sorted": lambda x: x.sort(0)[0],
    "reshaped": lambda x: x.reshape(2, 2, 5, 6),
    "as many": lambda x: x.reshape(5, 4, 6),
    "met": lambda x: x[:, 0, :4] * x[:, 0, :4].T,
    "contracted": lambda x: x[:, 0, 0] @ x[:, 1, :],
    "summed over": lambda x: torch.einsum("bij,bij->ij", x, x),
    "a letter twice": lambda x: torch.einsum("bb->b", x[:, 0, :4]),
    "reduced": lambda x: functional.mse_loss(x, x * 0) + x,
    "batch norm": lambda x: functional.batch_norm(x, None, None, training=True),
    "some rows": lambda x: x[1:],
    "by index": lambda x: x[torch.tensor([1, 0, 3, 2])],
    "convolved": lambda x: functional.conv1d(x.movedim(0, 1), torch.ones(2, 4, 3).to(x)),
    "joined": lambda x: torch.cat([x, x], 0),
    "outer": lambda x: torch.outer(x[:, 0, 0], x[:, 0, 0]),
    "running": lambda x: x.cumsum(0),
    "flipped": lambda x: x.flip(0),
    "norm": lambda x: x.norm(),
    "split": lambda x: x.split(2, 0)[1],
}


def found(function: Callable[[Tensor], Tensor]) -> int:
    """Where the rows of `X` are in what a function gives."""
    module = torch.fx.symbolic_trace(function)
    places: dict[torch.fx.Node, int] = {}

    class Run(torch.fx.Interpreter):
        def run_node(self, n: torch.fx.Node) -> object:
            value = super().run_node(n)
            kind = TensorType(tuple(value.shape), value.dtype, value.device) if isinstance(value, Tensor) else None
            n.meta["type"] = kind
            if n.op == "get_attr":
                places[n] = NOWHERE
            elif n.op != "output":
                places[n] = 0 if n.op == "placeholder" else place_in(n, places)
            return value

    Run(module).run(X)
    return places[module.graph.output_node().args[0]]  # type: ignore[index]


@pytest.mark.parametrize("name", PROVEN)
def test_what_is_proven_is_so(name: str) -> None:
    function, place = PROVEN[name]
    assert found(function) == place
    other = X.clone()
    other[1] = torch.rand(5, 6).to(X)
    before, after = (function(x).movedim(place, 0) for x in (X, other))
    kept = [0, 2, 3]
    torch.testing.assert_close(before[kept], after[kept])


@pytest.mark.parametrize("name", NOT)
def test_what_may_mix_is_not_proven(name: str) -> None:
    assert found(NOT[name]) == UNPROVEN
