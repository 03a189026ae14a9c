"""The temperature of a relaxation: a number, or a schedule that moves while the program trains."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from numbers import Real
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from propc.errors import PropcTypeError, PropcValueError, message
from propc.runtime.autograd.run_once import once

if TYPE_CHECKING:
    from propc.propagators.sites.site_propagator import SiteContext


class Calls(nn.Module):
    """Counts the calls of a site that train. The count is a number of the host; it is saved as a tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def get_extra_state(self) -> Tensor:
        return torch.tensor(self.count)

    def set_extra_state(self, state: Tensor) -> None:
        self.count = int(state)

    def begin(self, trains: bool) -> int:
        """How many calls that train came before this one; of any other call, before the last that trained."""
        before = self.count if trains and self.training else max(self.count - 1, 0)
        self.count += trains and self.training
        return before


@dataclass(frozen=True)
class Temperature:
    """A positive number, or a function that gives one for the number of calls so far.

    A call counts where the site's gradient is wanted, outside `eval()` mode. Others take the temperature of
    the last that counted.

    Raises:
        PropcValueError: a number that is not positive and finite.
        PropcTypeError: no number, and no function.
    """

    choice: float | Callable[[int], float]

    def __post_init__(self) -> None:
        if not callable(self.choice):
            _positive(self.choice)

    def state(self) -> nn.Module | None:
        """The count of calls, where there is a schedule."""
        return Calls() if callable(self.choice) else None

    def now(self, site: SiteContext, trains: bool) -> float:
        """The temperature of this call."""
        if not callable(self.choice):
            return self.choice
        assert isinstance(site.state, Calls)
        return once(partial(self._scheduled, site, site.state, trains), draws=False)

    def _scheduled(self, site: SiteContext, state: Calls, trains: bool) -> float:
        assert callable(self.choice)
        calls = state.begin(trains and not site.again)
        return _positive(self.choice(calls), f"site {site.name!r}", f" at call {calls}")


def _positive(value: Any, at: str = "", when: str = "") -> float:
    """The value as a number, checked."""
    if not isinstance(value, Real) or isinstance(value, bool):
        raise PropcTypeError(
            message(
                f"option temperature={value!r}{when} is neither a number nor a function that gives one",
                "Write 0.5, or lambda calls: max(0.5, 0.999**calls).",
                at=at,
            )
        )
    number = float(value)
    if not 0 < number < math.inf:
        raise PropcValueError(message(f"option temperature={value!r}{when} must be positive and finite", at=at))
    return number
