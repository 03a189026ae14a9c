"""Keeping the seed of a large draw instead of the draw: memory against one more drawing of the noise.

A gate that needs its own sample in the reverse pass would hold one more tensor for each site.
Where the sample is large, the generator's state is held instead, a few kilobytes, and the
reverse pass draws the same noise again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from propc.runtime.autograd.run_once import recorded

# Elements from which a draw is made again. That costs as much as drawing at every size (measured: 1.4 ms a MiB). In
# float32 the state takes a 26th of so many elements; programs of smaller draws are short of time sooner than of memory.
LARGE = 2**15


class Recipe:
    """How to make loc + ε·scale again, bit for bit."""

    def __init__(self, state: Tensor, loc: Tensor, scale: Tensor) -> None:
        self.state, self.loc, self.scale = state, loc.detach(), scale.detach()

    def make(self) -> Tensor:
        """The draw."""
        generator = torch.Generator()
        generator.set_state(self.state)
        noise = torch.randn(self.loc.shape, dtype=self.loc.dtype, generator=generator)
        return noise.mul_(self.scale).add_(self.loc)


def redrawn(call: Callable[..., Any], arguments: tuple[Any, ...], loc: Tensor, scale: Tensor) -> Any:
    """Run a call whose first saved tensor is a draw from Normal(loc, scale), keeping the seed in its place.

    What runs again in the reverse pass needs neither: its draw is not kept.
    """
    if loc.numel() < LARGE or not loc.is_cpu or recorded():
        return call(*arguments)
    recipe = Recipe(torch.default_generator.get_state(), loc, scale)
    packed: list[Any] = []

    def pack(tensor: Tensor) -> Any:
        packed.append(tensor.shape)
        return recipe if len(packed) == 1 else tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept.make() if kept is recipe else kept):
        return call(*arguments)
