"""Tensors as they are after a write, by operations that only read."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def filled(tensor: Tensor, value: Any) -> Tensor:
    """What `fill_` writes."""
    return torch.as_tensor(value, dtype=tensor.dtype, device=tensor.device).expand(tensor.shape).clone()


def copied(tensor: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
    """What `copy_` writes."""
    return source.to(tensor, non_blocking=non_blocking).expand(tensor.shape).clone()


def zeroed(tensor: Tensor) -> Tensor:
    """What `zero_` writes."""
    return torch.zeros_like(tensor)


def assigned(tensor: Tensor, index: Any, value: Any) -> Tensor:
    """The tensor after ``tensor[index] = value``."""
    items = index if isinstance(index, tuple) else (index,)
    if len(items) == 1 and isinstance(items[0], Tensor) and items[0].dtype == torch.bool and _is_number(value):
        mask = items[0].reshape(*items[0].shape, *(1,) * (tensor.dim() - items[0].dim()))
        return torch.where(mask, torch.as_tensor(value, dtype=tensor.dtype, device=tensor.device), tensor)
    if all(isinstance(item, (int, slice, type(...))) and not isinstance(item, bool) for item in items):
        return _scattered(tensor, 0, _without_ellipsis(items, tensor.dim()), value)
    new = tensor.clone()
    new[index] = value
    return new


def _is_number(value: Any) -> bool:
    return not isinstance(value, Tensor) or not value.dim()


def _without_ellipsis(items: tuple[Any, ...], dims: int) -> tuple[Any, ...]:
    at = next((i for i, item in enumerate(items) if item is ...), len(items))
    behind = items[at + 1 :]
    return (*items[:at], *(slice(None),) * (dims - at - len(behind)), *behind)


def _scattered(tensor: Tensor, dim: int, items: tuple[Any, ...], value: Any) -> Tensor:
    """The tensor with a value in a part of it, by operations that read alone: vmap knows them."""
    if not items:
        source = (
            value if isinstance(value, Tensor) else torch.as_tensor(value, dtype=tensor.dtype, device=tensor.device)
        )
        lead = source.dim() - tensor.dim()
        return (source.reshape(source.shape[lead:]) if lead > 0 else source).to(tensor.dtype).expand(tensor.shape)
    item, rest = items[0], items[1:]
    if isinstance(item, int):
        part = _scattered(tensor.select(dim, item), dim, rest, value)
        return select_scattered(tensor, part, dim, item)
    if item == slice(None):
        return _scattered(tensor, dim + 1, rest, value)
    part = _scattered(tensor[(*(slice(None),) * dim, item)], dim + 1, rest, value)
    return torch.slice_scatter(tensor, part, dim, item.start, item.stop, item.step or 1)


def replaced(tensor: Tensor, index: Any, value: Any) -> Tensor:
    """The tensor after an assignment to all of it."""
    return copied(tensor, torch.as_tensor(value, dtype=tensor.dtype, device=tensor.device))


WRITTEN = frozenset({assigned, copied, filled, replaced, zeroed})  # what stands in a program in place of writes


def select_scattered(tensor: Tensor, source: Tensor, dim: int, index: int) -> Tensor:
    """`torch.select_scatter`, of which `torch.vmap` gives the source a wrong derivative (seen in 2.13)."""
    size = tensor.shape[dim]
    before, behind = tensor.narrow(dim, 0, index % size), tensor.narrow(dim, index % size + 1, size - index % size - 1)
    return torch.cat([before, source.unsqueeze(dim), behind], dim)


def index_filled(tensor: Tensor, dim: int, index: Tensor, value: Any) -> Tensor:
    """`Tensor.index_fill`, of which `torch.vmap` gives a wrong value where `value` alone is batched (seen in 2.13)."""
    there = torch.zeros(tensor.shape[dim], dtype=torch.bool, device=tensor.device)
    there = there.scatter(0, index.reshape(-1), True)
    shape = [1] * tensor.dim()
    shape[dim] = -1
    return torch.where(there.view(shape), torch.as_tensor(value, dtype=tensor.dtype, device=tensor.device), tensor)
