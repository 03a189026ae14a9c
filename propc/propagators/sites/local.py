"""Local expectation gradient: every element takes all its values in turn, while the others keep the draw."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.distributions import Bernoulli

from propc.distributions.probabilities import probabilities
from propc.propagators.sites.alternatives import Exploring


@dataclass(frozen=True)
class LocalRule(Exploring):
    """The alternatives of an element are all values that it has not, weighted with their probabilities."""

    name: ClassVar[str] = "local"

    def others(self, dist: Any, value: Tensor) -> tuple[Tensor, Tensor]:
        if type(dist) is Bernoulli:
            return (1 - value)[None], torch.where(value > 0, 1 - dist.probs, dist.probs)[None]
        count, event = self.each + 1, dist.event_shape
        support = dist.enumerate_support(expand=False)
        with torch.no_grad():
            same = (support == value).flatten(value.dim() - len(event) + 1).all(-1) if event else support == value
            numbers = torch.arange(count, device=value.device).view(-1, *(1,) * (same.dim() - 1))
            other = ((same * numbers).sum(0) + numbers[1:]) % count
        table = probabilities(dist, support)
        return support.reshape(count, *event)[other], table.gather(0, other)
