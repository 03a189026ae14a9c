"""Baselines: what is subtracted from a cost before it becomes a message."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from propc.errors import PropcTypeError, PropcValueError, message, nearest


class Baseline(ABC):
    """What a cost subtracts from its value before it is sent as a message.

    A baseline must not see the sample that it is subtracted for, else the estimate is biased.
    """

    stateful: ClassVar[bool] = False

    @abstractmethod
    def center(self, cost: Tensor, state: nn.Module | None) -> Tensor:
        """Cost minus baseline: [batch] → [batch]. `cost` is detached."""

    def state(self) -> nn.Module | None:
        """The memory it keeps from call to call, if any."""
        return None


@dataclass(frozen=True)
class LeaveOneOut(Baseline):
    """Mean of the other samples' costs in the batch. Unbiased; needs two samples (Kool et al. 2019).

    With `halves`, of the other samples in the same half of the batch: where the weights of one half
    come from the other (crossfit), no cost may pass between them. Batches below four stay whole.
    """

    halves: bool = False

    def center(self, cost: Tensor, state: nn.Module | None) -> Tensor:
        count = cost.shape[0]
        if not self.halves or count < 4:
            return _centered(cost.unsqueeze(0)).squeeze(0)
        if count % 2:
            return torch.cat([_centered(half.unsqueeze(0)).squeeze(0) for half in cost.tensor_split([count // 2])])
        return _centered(cost.reshape(2, -1)).reshape(-1)


def _centered(costs: Tensor) -> Tensor:
    """[groups, samples] minus the mean of the other samples in the group."""
    count = costs.shape[1]
    return (costs - costs.mean(1, keepdim=True)).mul_(count / (count - 1))


@dataclass(frozen=True)
class MovingAverage(Baseline):
    """Moving average of earlier batches' mean costs; zero at the first call. Unbiased.

    It moves at every call with gradients enabled, except in eval mode.
    """

    stateful: ClassVar[bool] = True
    decay: float = 0.95

    def state(self) -> nn.Module:
        return RunningMean(self.decay)

    def center(self, cost: Tensor, state: nn.Module | None) -> Tensor:
        assert isinstance(state, RunningMean)
        return cost - state.read_then_update(cost)


@dataclass(frozen=True)
class NoBaseline(Baseline):
    """Nothing is subtracted. Unbiased, with the largest variance."""

    def center(self, cost: Tensor, state: nn.Module | None) -> Tensor:
        return cost


@dataclass(frozen=True)
class Custom(Baseline):
    """A user's function of the detached costs [batch], giving the baseline, broadcastable to [batch].

    Unbiased if row i of its result does not depend on row i of its argument.
    """

    function: Callable[[Tensor], Any]

    def center(self, cost: Tensor, state: nn.Module | None) -> Tensor:
        value = torch.as_tensor(self.function(cost), dtype=cost.dtype, device=cost.device)
        if value.dim() and value.shape != cost.shape:
            raise PropcValueError(
                message(
                    f"a baseline function must give a scalar or shape {tuple(cost.shape)}; got {tuple(value.shape)}",
                    "It receives the costs, [batch].",
                )
            )
        return cost - value.detach()


class RunningMean(nn.Module):
    """Exponentially weighted mean of batch means, corrected for its start at zero."""

    mean: Tensor
    weight: Tensor

    def __init__(self, decay: float) -> None:
        super().__init__()
        self.decay = decay
        self.register_buffer("mean", torch.zeros((), dtype=torch.float64))
        self.register_buffer("weight", torch.zeros((), dtype=torch.float64))

    def read_then_update(self, cost: Tensor) -> Tensor:
        """The mean of earlier batches, zero at first; this batch counts from the next call on."""
        if self.mean.device != cost.device:
            self.to(cost.device)
        value = (self.mean / self.weight.clamp(min=1e-12)).to(cost.dtype)
        if self.training:
            now = cost.mean().to(self.mean.dtype)
            share = torch.isfinite(now) * (1 - self.decay)  # a batch that is not finite does not count
            self.mean.lerp_(torch.nan_to_num(now), share.to(now.dtype))
            self.weight.lerp_(torch.ones_like(self.weight), share.to(now.dtype))
        return value


_NAMED: dict[str, type[Baseline]] = {"loo": LeaveOneOut, "moving_average": MovingAverage}


def baseline(choice: Any) -> Baseline:
    """A baseline from ``"loo"``, ``"moving_average"``, None, a callable or a `Baseline`.

    Raises:
        PropcValueError: an unknown name.
        PropcTypeError: anything else.
    """
    if isinstance(choice, Baseline):
        return choice
    if choice is None:
        return NoBaseline()
    if isinstance(choice, str):
        if choice not in _NAMED:
            raise PropcValueError(message(f"unknown baseline {choice!r}", nearest(choice, _NAMED)))
        return _NAMED[choice]()
    if callable(choice):
        return Custom(choice)
    raise PropcTypeError(
        message(
            f"a baseline is a name, None or a callable; got {choice!r}",
            f"Known names: {', '.join(map(repr, sorted(_NAMED)))}.",
        )
    )
