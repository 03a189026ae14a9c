"""Leading dimensions by name: plates, of which the last introduced stands outermost, the batch, plates of the data."""

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


def closed(value: Tensor, have: Names, want: Names) -> Tensor:
    """The same in the plates `have` alone: the opposite of `aligned`."""
    gone = [dim for dim, name in enumerate(want[want.index(have[0]) :]) if name not in have] if have else []
    return value.squeeze(gone) if gone else value


def fitted(value: Tensor, have: Names, want: Names, apart: Names, sizes: tuple[int, ...]) -> Tensor:
    """A token for a cost: summed over the dimensions that the cost has not, spread over those that only it has.

    So an element of the token hears of all elements of the cost along the dimensions that it does not have.

    Args:
        have, want: names of the dimensions of the token and of the cost.
        apart: of those that both have, the ones along which elements stay apart.
        sizes: of the cost.
    """
    gone = [i for i, name in enumerate(have) if name not in apart]
    value = value.sum(gone) if gone else value
    return value[tuple(slice(None) if name in have and name in apart else None for name in want)].expand(sizes)
