"""Leading dimensions: where the plates of a value stand, the last introduced outermost."""

from __future__ import annotations

from torch import Tensor

Names = tuple[str, ...]


def aligned(value: Tensor, have: Names, want: Names) -> Tensor:
    """A value in the plates `have`, with dimensions of length 1 for those of `want` that stand between them."""
    if have == want or not have:
        return value
    for dim, name in enumerate(want[want.index(have[0]) :]):
        if name not in have:
            value = value.unsqueeze(dim)
    return value
