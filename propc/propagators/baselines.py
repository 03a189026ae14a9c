"""Baselines: what is subtracted from a cost before it becomes a message."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from propc.errors import PropcTypeError, PropcValueError, message, nearest

Run = Callable[[Tensor, int], Tensor]


class Baseline(ABC):
    """What a cost subtracts from its value before it is sent as a message.

    A baseline must not see the sample that it is subtracted for, else the estimate is biased.

    Attributes:
        stateful: whether it has a `state`; follows from that.
        sends: the names of what is sent under it.
    """

    stateful: ClassVar[bool] = False
    sends: ClassVar[tuple[str, ...]] = ("cost",)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.stateful = cls.state is not Baseline.state

    @property
    def traceable(self) -> bool:
        """Whether `center` is nothing but operations on tensors, so that a backend may run it once and compile it."""
        return not self.stateful and type(self).__module__ == __name__

    @abstractmethod
    def center(self, cost: Tensor, state: nn.Module | None) -> Tensor:
        """Cost minus baseline, of the same shape.

        Args:
            cost: detached: [batch]; [samples, batch] where the site draws several; in plates of the data [batch, n].
            state: the module that `state` gave, or None.
        """

    def centered(self, cost: Tensor, state: nn.Module | None) -> Tensor:
        """What `center` gives.

        Raises:
            PropcValueError: it is no tensor of the shape of `cost`.
        """
        made = self.center(cost, state)
        if isinstance(made, Tensor) and made.shape == cost.shape:
            return made
        got = tuple(made.shape) if isinstance(made, Tensor) else type(made).__name__
        raise PropcValueError(
            message(
                f"{type(self).__name__}.center must give the shape of the costs, {tuple(cost.shape)}; got {got}",
                "Return cost - baseline.",
            )
        )

    def center_bound(self, bound: Tensor, log_weights: Tensor, state: nn.Module | None) -> Tensor:
        """A bound minus a baseline for each sample: [batch], [samples, batch] → [samples, batch].

        By default that which `center` takes for the bounds, the same for all samples of a row.

        Args:
            bound: log of the mean weight, detached.
            log_weights: of the samples, detached. What is subtracted for one must not depend on its weight.
            state: as of `center`.
        """
        return self.center(bound, state).expand_as(log_weights)

    def state(self) -> nn.Module | None:
        """The memory it keeps from call to call, if any; each cost has one of its own, which the program saves."""
        return None


@dataclass(frozen=True)
class LeaveOneOut(Baseline):
    """Mean of the other samples' costs in the batch. Unbiased; needs two samples (Kool et al. 2019).

    Of a bound, the bound of the other samples.

    With several `groups`, of the other samples in the same group of rows: where the weights of one group come from
    another (crossfit), no cost may pass between them. Batches of fewer than two rows a group stay whole.
    """

    groups: int = 1

    def center(self, cost: Tensor, state: nn.Module | None) -> Tensor:
        count = cost.shape[0]
        if self.groups == 1 or count < 2 * self.groups:
            return _centered(cost, 0)
        size, rest = divmod(count, self.groups)
        if rest:
            ends = [size * i for i in range(1, self.groups)]
            return torch.cat([_centered(group, 0) for group in cost.tensor_split(ends)])
        return _centered(cost.view(self.groups, size, *cost.shape[1:]), 1).view(cost.shape)

    def center_bound(self, bound: Tensor, log_weights: Tensor, state: nn.Module | None) -> Tensor:
        return bound - _or_nothing(_log_sum_of_others(log_weights) - math.log(log_weights.shape[0] - 1))


@dataclass(frozen=True)
class GeometricMean(LeaveOneOut):
    """Of a bound, the bound with the geometric mean of the others in place of a sample's weight. Unbiased.

    Of other costs, what `LeaveOneOut` takes. Reference: Mnih & Rezende (2016), arXiv:1602.06725.
    """

    def center_bound(self, bound: Tensor, log_weights: Tensor, state: nn.Module | None) -> Tensor:
        count = log_weights.shape[0]
        stand_in = _sum_of_others(log_weights) / (count - 1)
        return bound - _or_nothing(torch.logaddexp(_log_sum_of_others(log_weights), stand_in) - math.log(count))


def _sum_of_others(values: Tensor) -> Tensor:
    """[samples, ...] summed over the other samples; without differences, as a value may be infinite."""
    return _others(values, torch.cumsum, 0.0, torch.add)


def _log_sum_of_others(values: Tensor) -> Tensor:
    """The same of their exponentials, in logarithms."""
    return _others(values, torch.logcumsumexp, -torch.inf, torch.logaddexp)


def _or_nothing(baseline: Tensor) -> Tensor:
    """Zero where all others have weight zero."""
    return torch.where(torch.isfinite(baseline), baseline, 0.0)


def _others(values: Tensor, run: Run, nothing: float, join: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """What `join` makes of all samples before each one and all behind it."""
    ends = values.new_full((1, *values.shape[1:]), nothing)
    before = torch.cat([ends, run(values[:-1], 0)])
    behind = torch.cat([run(values[1:].flip(0), 0).flip(0), ends])
    return join(before, behind)


def _centered(costs: Tensor, dim: int) -> Tensor:
    """Costs minus the mean of the others along a dimension."""
    others = costs.sum(dim, keepdim=True) - costs
    return torch.sub(costs, others, alpha=1 / (costs.shape[dim] - 1))


@dataclass(frozen=True)
class MovingAverage(Baseline):
    """Moving average of earlier batches' mean costs; zero at the first call. Unbiased.

    It moves at every call with gradients enabled, except in eval mode.
    """

    decay: float = 0.95  # as Storchastic has it: a batch counts for some twenty

    def __post_init__(self) -> None:
        if not isinstance(self.decay, (int, float)) or not 0 <= self.decay < 1:
            raise PropcValueError(message(f"option decay={self.decay!r} must be a number from 0 to below 1"))

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
class Weight(Baseline):
    """In the place of a baseline: the token receives the user's weights of the costs sent here, and not the costs.

    That is Σ ∂(loss)/∂(cost) over the costs, where a token under a baseline receives Σ ∂(loss)/∂(cost) · (cost −
    baseline).
    """

    sends: ClassVar[tuple[str, ...]] = ("weight",)

    def center(self, cost: Tensor, state: nn.Module | None) -> Tensor:
        return torch.ones_like(cost)


WEIGHT = Weight()


@dataclass(frozen=True)
class Custom(Baseline):
    """A user's function of the detached costs [batch], giving the baseline, broadcastable to [batch].

    Unbiased if row i of its result does not depend on row i of its argument.
    """

    function: Callable[[Tensor], Any]

    @property
    def traceable(self) -> bool:
        return False

    def center(self, cost: Tensor, state: nn.Module | None) -> Tensor:
        found = self.function(cost.clone())  # which it may write into
        if not isinstance(found, (Tensor, int, float)):
            raise PropcTypeError(
                message(f"a baseline function must give a tensor or a number; got {found!r}", "Return the baseline.")
            )
        value = torch.as_tensor(found, dtype=cost.dtype, device=cost.device)
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
        value = (self.mean / self.weight.clamp(min=1e-12)).to(cost.dtype)  # at first 0/0, which shall be 0
        if self.training:
            now = cost.mean().to(self.mean.dtype)
            share = torch.isfinite(now) * (1 - self.decay)  # a batch that is not finite does not count
            self.mean.lerp_(torch.nan_to_num(now), share.to(now.dtype))
            self.weight.lerp_(torch.ones_like(self.weight), share.to(now.dtype))
        return value


_NAMED: dict[str, type[Baseline]] = {"loo": LeaveOneOut, "moving_average": MovingAverage}


def baseline(choice: Any) -> Baseline:
    """A baseline from ``"loo"``, ``"moving_average"``, None, a callable, or a `Baseline` or its class.

    Raises:
        PropcValueError: an unknown name; `WEIGHT`.
        PropcTypeError: anything else.
    """
    if isinstance(choice, Weight):
        raise PropcValueError(
            message("WEIGHT is no baseline", "A rule of yours has it among its `baselines`, for a token of its own.")
        )
    if isinstance(choice, type) and issubclass(choice, Baseline):
        return choice()
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
