"""What is inside a distribution: its independent elements, their values and probabilities, its parameters, its ends."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.distributions import (
    Binomial,
    Distribution,
    Independent,
    MixtureSameFamily,
    SigmoidTransform,
    TransformedDistribution,
    constraints,
)
from torch.distributions.transforms import Transform

from propc.distributions.spec import DistributionSpec, Slot
from propc.types import TensorType
from propc.util.torch_private import EVENT_SHAPE, inverted


def values_of(spec: DistributionSpec, phi: Sequence[TensorType]) -> int | None:
    """How many values each independent element of a distribution has; None where they cannot be listed."""
    kind: Any = spec.innermost.type
    if not kind.has_enumerate_support or issubclass(kind, Binomial):  # its number of values is a value itself
        return None
    try:
        return len(base_of(of_ones(spec, phi)).enumerate_support(expand=False))
    except (NotImplementedError, ValueError, RuntimeError):  # a law that only says it can, or takes no ones
        return None


def of_ones(spec: DistributionSpec, phi: Sequence[TensorType]) -> Distribution:
    """A distribution of the same shapes, to ask what does not depend on its parameters."""
    return spec.builder()([torch.ones(p.shape, dtype=p.dtype) for p in phi])


def places(spec: DistributionSpec, *, batched: bool) -> int:
    """How many independent elements a draw has, for one row of the batch where there is one."""
    whole = spec.sample_shape[: len(spec.sample_shape) - len(event_of(spec))]
    return math.prod(whole[1:] if batched else whole)


def event_of(spec: DistributionSpec) -> tuple[int, ...]:
    """The shape of each independent element."""
    event: Any = dict(spec.innermost.items)[EVENT_SHAPE]
    return tuple(event.value)


def parameters(spec: DistributionSpec) -> dict[str, int]:
    """The tensors that the distribution inside `Independent` holds: places among φ, by attribute."""
    return {name: child.index for name, child in spec.innermost.items if isinstance(child, Slot)}


def base_of(dist: Distribution) -> Distribution:
    """The distribution inside `Independent`."""
    while isinstance(dist, Independent):
        dist = dist.base_dist
    return dist


def configurations(values: int, places: int, device: torch.device) -> Tensor:
    """All joint configurations as indices of values, [values ** places, places]; the last place moves fastest."""
    return _configurations(values, places, str(device))


@lru_cache(maxsize=16)  # tables may be large, and a program has few
def _configurations(values: int, places: int, device: str) -> Tensor:
    with torch.inference_mode(False):
        if not places:  # the empty configuration is one
            return torch.zeros(1, 0, dtype=torch.long, device=device)
        digits = [torch.arange(values, device=device)] * places
        return torch.cartesian_prod(*digits).reshape(values**places, places)


def joint(table: Tensor) -> Tensor:
    """Products over the places of a table [values, *lead, places] of all configurations: [values ** places, *lead]."""
    if not table.shape[-1]:
        return table.new_ones(1, *table.shape[1:-1])
    product, *rest = table.unbind(-1)
    for column in rest:
        product = (product.unsqueeze(1) * column.unsqueeze(0)).flatten(0, 1)
    return product


def moving_ends(spec: DistributionSpec, phi: Sequence[TensorType]) -> frozenset[int]:
    """Places among φ of the tensors that move a finite end of the support, as low and high of a Uniform do."""
    kind: Any = spec.innermost.type
    if not constraints.is_dependent(kind.support):
        return frozenset()
    tensors = [torch.ones(p.shape, dtype=p.dtype, requires_grad=p.dtype.is_floating_point) for p in phi]
    movable = [(i, tensor) for i, tensor in enumerate(tensors) if tensor.requires_grad]
    with torch.enable_grad():
        try:
            ends = [end.sum() for end in _ends(spec.builder()(tensors)) if end.requires_grad]
        except (NotImplementedError, ValueError, RuntimeError, AttributeError):  # a law that does not say
            return frozenset()
    if not ends:
        return frozenset()
    along = torch.autograd.grad(ends, [tensor for _, tensor in movable], allow_unused=True)
    return frozenset(i for (i, _), by in zip(movable, along) if by is not None and by.nan_to_num(0.0).any())


def _ends(dist: Distribution) -> list[Tensor]:
    """The finite ends of a distribution's support, as functions of its parameters."""
    if isinstance(dist, Independent):
        return _ends(dist.base_dist)
    if isinstance(dist, MixtureSameFamily):
        return _ends(dist.component_distribution)
    if isinstance(dist, TransformedDistribution) and type(dist).support is TransformedDistribution.support:
        ends = _ends(dist.base_dist)
        for transform in dist.transforms:
            ends = [end for end in map(transform, ends) if not _is_logit(transform) and torch.isfinite(end).all()]
        return ends
    bounds: Any = dist.support
    while hasattr(bounds, "base_constraint"):
        bounds = bounds.base_constraint
    found = (getattr(bounds, name, None) for name in ("lower_bound", "upper_bound"))
    return [torch.as_tensor(end, dtype=torch.get_default_dtype()) for end in found if end is not None]


def _is_logit(transform: Transform) -> bool:
    """Whether a transform takes the ends of the unit interval to infinity, though torch keeps them finite."""
    return isinstance(inverted(transform), SigmoidTransform)
