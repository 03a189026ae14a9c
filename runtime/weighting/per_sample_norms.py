"""Variances of the gradients of single samples at a weighting target, without these gradients where they are large.

The gradient of a sample in a matrix is a sum of outer products, Σ_t l_t r_tᵀ. Its squared norm is
Σ_ts (l_t·l_s)(r_t·r_s), of a single product |l|²|r|² (Goodfellow 2015, Efficient per-example gradient computations);
the sum over samples is one product of matrices. So the variance is exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.fx
from torch import Tensor

from propc.util.rounding import spare

ROWS, PRODUCT, LAYER = "rows", "product", "layer"  # what a reverse traversal gives for a target


@dataclass(frozen=True)
class Norms:
    """How a site takes variances at its weighting target by one reverse traversal.

    Attributes:
        ports: the φ from which cotangents are pulled back.
        code: from what the forward pass has made and their cotangents [parts, batch, ...] to the gradients of single
            samples or their factors, as `layout` says (`propc.runtime.weighting.per_sample_vjp.Pulled`).
        sketches: how many random signs stand for the rest of the target, which has tangents.
    """

    ports: tuple[int, ...]
    code: torch.fx.GraphModule
    layout: tuple[str, ...]
    sketches: int = 1

    def variances(self, cotangents: Sequence[Tensor], made: Sequence[Tensor], groups: int) -> Tensor:
        """Summed squared deviations [parts, groups, 1, 1].

        Args:
            cotangents: for each of `ports`, [parts, batch, ...].
            made: what the code reads of the forward pass.
        """
        found = list(self.code(*made, *cotangents))
        each = [
            moments(found.pop(0), groups)
            if kind == ROWS
            else moments_of_products(found.pop(0), found.pop(0), groups, kind == LAYER)
            for kind in self.layout
        ]
        size, total = (_together(norms) for norms in zip(*each))
        return deviation(size, total, cotangents[0].shape[1] // groups)


def _together(norms: Sequence[Tensor]) -> Tensor:
    """The norm of a vector, from those of its pieces."""
    return norms[0] if len(norms) == 1 else torch.linalg.vector_norm(torch.stack(list(norms)), dim=0)


def moments(grads: Tensor, groups: int, per_coordinate: bool = False) -> tuple[Tensor, Tensor]:
    """√Σ|g|² and |Σg| over the rows of each group, [parts, groups, 1, coordinates or 1].

    Args:
        grads: of single samples, [parts, batch, ...]; rows that are left over are not seen.
    """
    parts, batch = grads.shape[:2]
    rows = batch // groups
    if batch % groups:
        grads = grads[:, : groups * rows]
    grads = grads.reshape(parts, groups, rows, -1)
    dims = 2 if per_coordinate else (2, 3)
    total = torch.linalg.vector_norm(grads.sum(2, keepdim=True), dim=dims, keepdim=True)
    return torch.linalg.vector_norm(grads, dim=dims, keepdim=True), total


def moments_of_products(left: Tensor, right: Tensor, groups: int, bias: bool = False) -> tuple[Tensor, Tensor]:
    """The same of gradients Σ_t l_t r_tᵀ.

    Args:
        left, right: [parts or 1, batch, T, ...].
        bias: whether `left`, summed over T, is a gradient too, as of the bias of a layer.
    """
    times, m, n = left.shape[2], left.shape[3], right.shape[3]
    if times > 1 and times * (m + n) > m * n:
        if bias:
            right = torch.cat([right, right.new_ones(()).expand(*right.shape[:3], 1)], 3)
        return moments(_by_part(left, right), groups)
    rows = left.shape[1] // groups
    left, right = (f[:, : groups * rows].unflatten(1, (groups, rows)) for f in (left, right))
    every = left.flatten(2, 3), right.flatten(2, 3)
    products = _products(*every, bias) if rows * times * (m + n) < m * n else None
    norm = partial(torch.linalg.vector_norm, keepdim=True)
    if times > 1:
        size = _root(_products(left, right, bias).sum((2, 3, 4))[:, :, None, None])
    elif products is not None:
        size = _root(products.diagonal(0, 2, 3).sum(2)[:, :, None, None])
    else:
        ends = norm(right, dim=(3, 4)).squeeze(4)
        ends = ends.square_().add_(1).sqrt_() if bias else ends
        size = norm(norm(left, dim=(3, 4)).squeeze(4) * ends, dim=(2, 3))
    if products is not None:
        return size, _root(products.sum((2, 3), keepdim=True))
    total = norm(_by_part(*every), dim=(2, 3))
    return size, torch.hypot(total, norm(every[0].sum(2, keepdim=True), dim=(2, 3))) if bias else total


def _by_part(left: Tensor, right: Tensor) -> Tensor:
    """Σ_t l_t r_tᵀ; one part after the other, as what is common to all would be copied for each."""
    parts = max(len(left), len(right))
    pairs = zip(left.expand(parts, -1, -1, -1), right.expand(parts, -1, -1, -1))
    return torch.stack([a.mT @ b for a, b in pairs])


def _products(left: Tensor, right: Tensor, bias: bool) -> Tensor:
    """Inner products of the gradients that pairs of factors make, [..., T, T]."""
    inner = right @ right.mT
    return (left @ left.mT) * (inner.add_(1) if bias else inner)


def _root(squares: Tensor) -> Tensor:
    """The root of what rounding may have made negative."""
    return squares.clamp_(min=0).sqrt_()


def variance(grads: Tensor, groups: int, per_coordinate: bool = False) -> Tensor:
    """Summed squared deviations over the rows of each group, of gradients of single samples as of `moments`."""
    return deviation(*moments(grads, groups, per_coordinate), grads.shape[1] // groups)


def deviation(size: Tensor, total: Tensor, rows: int) -> Tensor:
    """Σ|g − ḡ|² from √Σ|g|² and |Σg|: Σ|g|² − |Σg|²/n, with what may be rounding taken for zero.

    Where that matters the parts hardly vary, and any weights do. Cotangents whose squares overflow count as not finite.
    """
    mean = total * (rows**-0.5 * spare(size.dtype))
    return torch.addcmul(size * size, mean, mean, value=-1.0)
