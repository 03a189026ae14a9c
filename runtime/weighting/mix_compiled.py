"""Mixing two parts as compiled code runs it best: sums along whole rows, and each group apart.

While steps are traced to be compiled their tensors hold no values, so nothing can be looked at as in
`propc.runtime.weighting.mix_on_cpu`; and what `propc.runtime.weighting.mix` does for any number of parts and
coordinates would be compiled to loops over single numbers. The weights are those of `propc.runtime.weighting.weights`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from propc.util.rounding import spare

# Elements that a sum over rows takes at a time. Measured on 1000 rows, over row by row: 0.8 of the time at two columns,
# with 16, 64 or 256 alike; at eight columns no less.
WIDE = 64
# Elements; of so many all parts are put together, since each sum has a price of its own. Measured as steps of five
# compiled sites, over parts apart: 0.96 of the time at 4,000 and 16,000, 1.04 at 32,000.
SMALL = 2**15

_on = [False]  # not a context variable: the reverse pass on a device has threads of its own


@contextmanager
def tracing() -> Iterator[None]:
    """Trace steps to be compiled."""
    before, _on[0] = _on[0], True
    try:
        yield
    finally:
        _on[0] = before


def traced() -> bool:
    """Whether steps are traced to be compiled."""
    return _on[0]


def mix_traced(grads: Sequence[tuple[Tensor, ...]], groups: int) -> list[Tensor]:
    """Combine two parts with weights ∝ 1/variance; each group takes the weights of the next one.

    A part whose variance is not finite has weight zero; if neither has a finite one, the result is NaN.

    Args:
        grads: for each φ the cotangents of the two parts, each [batch, ...]; the batch is a multiple of `groups`.
        groups: 1, or several for crossfit.

    Returns:
        one cotangent for each φ, [batch, ...].
    """
    weights = _weights(_variances(grads, groups))
    return [
        torch.cat([_mixed(*pieces) for pieces in zip(*(part.chunk(groups) for part in pair), weights)])
        for pair in grads
    ]


def _variances(grads: Sequence[tuple[Tensor, ...]], groups: int) -> Tensor:
    """Summed squared deviations of rows from their mean, over all φ together, [parts, groups]."""
    small = grads[0][0].numel() <= SMALL and len({part.shape for pair in grads for part in pair}) == 1
    if small:
        both = torch.cat([pair[k] for k in (0, 1) for pair in grads])
        return _spread(both.reshape(2 * len(grads) * groups, -1, both[0].numel())).view(2, -1, groups).sum(1)
    found = [[_spread(pair[k].reshape(groups, -1, pair[k][0].numel())) for pair in grads] for k in (0, 1)]
    return torch.stack([torch.stack(each).sum(0) for each in found])


def _spread(rows: Tensor) -> Tensor:
    """[groups, rows, coordinates] → squared deviations from the mean row, summed, [groups].

    What may be rounding counts as zero.
    """
    groups, count, width = rows.shape
    fold = max(n for n in range(1, max(2, WIDE // width)) if count % n == 0)
    sums = rows.reshape(groups, count // fold, fold * width).sum(1).view(groups, fold, width).sum(1)
    return rows.reshape(groups, -1).square().sum(1) - sums.square().sum(1) * (spare(rows.dtype) ** 2 / count)


def _weights(variances: Tensor) -> Tensor:
    """The weight of the second part in each group, from the variances of the next; NaN where none is finite."""
    finite = torch.isfinite(variances)
    least = variances.clamp(min=torch.finfo(variances.dtype).tiny).roll(-1, 1)
    path, score = torch.where(finite & finite.roll(-1, 1), least, torch.inf)
    return torch.reciprocal(1 + score / path)  # a sum of both could overflow


def _mixed(path: Tensor, score: Tensor, weight: Tensor) -> Tensor:
    return torch.lerp(torch.nan_to_num(path, 0.0, 0.0, 0.0), torch.nan_to_num(score, 0.0, 0.0, 0.0), weight)
