"""Strides that compiled code was told of, in the source of a run."""

from __future__ import annotations

import torch
from torch import Tensor

from propc.runtime.backends.inductor.joint_graph import NOISE, Layout
from propc.runtime.plan.code_writer import CodeWriter


def fitted(code: CodeWriter, variable: str, want: Layout) -> str:
    """An expression for a variable's tensor with the strides that compiled code was told of."""
    return f"{code.hold('fit', fit)}({variable}, {want.shape}, {want.stride})"


def variable(index: int, kind: str, i: int) -> str:
    """The variable of noise or a result of a stage."""
    return f"{'n' if kind == NOISE else 'u'}{index}_{i}"


def fit(value: Tensor, shape: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
    """A tensor with the strides that compiled code was told of."""
    if value.stride() == stride:
        return value
    return torch.empty_strided(shape, stride, dtype=value.dtype, device=value.device).copy_(value)


def needs_fit(have: Layout, want: Layout) -> bool:
    """Whether strides differ where they matter."""
    differs = (h != w for h, w, size in zip(have.stride, want.stride, have.shape) if size > 1)
    return any(differs)
