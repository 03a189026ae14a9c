"""What is inside a distribution: its independent elements, their values and probabilities, its parameters."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Binomial, Categorical, Distribution, Independent, OneHotCategorical

from propc.distributions import DistributionSpec, Slot
from propc.ir import TensorType


def values_of(spec: DistributionSpec, phi: Sequence[TensorType]) -> int | None:
    """How many values each independent element of a distribution has; None where they cannot be listed."""
    kind: Any = spec.innermost.type
    if not kind.has_enumerate_support or issubclass(kind, Binomial):  # its number of values is a value itself
        return None
    try:
        made = base_of(spec.builder()([torch.ones(p.shape, dtype=p.dtype) for p in phi]))
        return len(made.enumerate_support(expand=False))
    except (NotImplementedError, ValueError, RuntimeError):
        return None


def places(spec: DistributionSpec, *, batched: bool) -> int:
    """How many independent elements a draw has, for one row of the batch where there is one."""
    event: Any = dict(spec.innermost.items)["_event_shape"]
    whole = spec.sample_shape[: len(spec.sample_shape) - len(event.value)]
    return math.prod(whole[1:] if batched else whole)


def parameters(spec: DistributionSpec) -> dict[str, int]:
    """The tensors that the distribution inside `Independent` holds: places among φ, by attribute."""
    return {name: child.index for name, child in spec.innermost.items if isinstance(child, Slot)}


def base_of(dist: Distribution) -> Distribution:
    """The distribution inside `Independent`."""
    while isinstance(dist, Independent):
        dist = dist.base_dist
    return dist


def probabilities(dist: Distribution, support: Tensor) -> Tensor:
    """The probability of each value of each element, [values, *batch_shape]; of classes differentiable at 0 too."""
    known = type(dist) in (Categorical, OneHotCategorical)
    table: Tensor = dist.probs.movedim(-1, 0) if known else dist.log_prob(support).exp()  # type: ignore[attr-defined]
    return table.expand(len(support), *dist.batch_shape)


def configurations(values: int, places: int, device: torch.device) -> Tensor:
    """All joint configurations as indices of values, [values ** places, places]; the last place moves fastest."""
    return _configurations(values, places, str(device))


@lru_cache(maxsize=16)
def _configurations(values: int, places: int, device: str) -> Tensor:
    with torch.inference_mode(False):
        digits = [torch.arange(values, device=device)] * places
        return torch.cartesian_prod(*digits).reshape(values**places, places)


def joint(table: Tensor) -> Tensor:
    """Sums over the places of a table, for every configuration: [values, *lead, places] → [values ** places, *lead]."""
    total, *rest = table.unbind(-1)
    for column in rest:
        total = (total.unsqueeze(1) + column.unsqueeze(0)).flatten(0, 1)
    return total
