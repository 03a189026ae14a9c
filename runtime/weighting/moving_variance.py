"""What a site keeps of the variances of earlier batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from propc.runtime.autograd.run_once import once
from propc.util.torch_private import BUFFERS, StateDictModule


class PastVariances(StateDictModule):
    """Moving variances of the parts' cotangents, a tensor for each φ or one for all; empty at first."""

    def known(self) -> list[Tensor]:
        """What earlier batches gave; nothing at first."""
        return [variance for variance in vars(self)[BUFFERS].values() if variance is not None]

    def join(self, now: Sequence[Tensor], decay: float) -> None:
        """The variances of this batch join those of earlier ones."""
        known = fitting(self.known(), now)
        for i, value in enumerate(now):
            limit = torch.finfo(value.dtype).max
            finite = value.nan_to_num(limit, limit).clamp(0.0, limit)
            self.register_buffer(f"variance{i}", finite if known is None else torch.lerp(finite, known[i], decay))

    def loading(self, state: dict[str, Any], prefix: str) -> None:
        for key in [k for k in state if k.startswith(prefix)]:
            self.register_buffer(key[len(prefix) :], state[key].clone())


def fitting(past: Sequence[Tensor], now: Sequence[Tensor]) -> list[Tensor] | None:
    """Variances of earlier batches, if they are of what this batch has variances of."""
    same = len(past) == len(now) and all(p.shape == v.shape for p, v in zip(past, now))
    return [p.to(v) for p, v in zip(past, now)] if same else None


def remembered(state: nn.Module | None) -> Sequence[Tensor]:
    """What a site knows of earlier batches by its state, read in the forward pass.

    So each reverse pass through the same draws has the same weights, none of which has seen them.
    """
    return once(state.known, draws=False) if isinstance(state, PastVariances) else ()
