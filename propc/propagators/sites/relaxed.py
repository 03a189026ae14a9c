"""Rules whose cotangent on a discrete draw goes through something smooth: its relaxation, or its probabilities."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from propc.distributions.perturbed_logits import Family
from propc.propagators.sites.site_propagator import Draw, SiteContext, SitePropagator
from propc.propagators.sites.temperature import Temperature
from propc.runtime.autograd.surrogate_gradient import stand_in


@dataclass(frozen=True)
class RelaxedRule(SitePropagator):
    """Draws something, in the family's coordinates.

    Attributes:
        family: of the site's distribution.
    """

    passes_path: ClassVar[bool] = True
    family: Family

    def draw(self, site: SiteContext, phi: Sequence[Tensor], tangents: Sequence[Tensor | None]) -> Draw:
        dist = site.build(phi)
        return Draw(self.family.value(dist, self.drawn(site, dist, self.family.logits(dist))))

    @abstractmethod
    def drawn(self, site: SiteContext, dist: Any, logits: Tensor) -> Tensor:
        """The draw, with the path that autograd is to see.

        Args:
            dist: the site's distribution.
            logits: of its classes, or of a Bernoulli's 1.
        """

    def _hard(self, site: SiteContext, draw: Tensor, path: Tensor) -> Tensor:
        """The draw, which to autograd is `path`."""
        return stand_in(draw, path, self.name, site.error)


@dataclass(frozen=True)
class StraightThroughRule(RelaxedRule):
    """Draws b ~ p; to autograd the draw is p."""

    name: ClassVar[str] = "st"

    def drawn(self, site: SiteContext, dist: Any, logits: Tensor) -> Tensor:
        probs = self.family.probs(dist)
        return self._hard(site, self.family.draw(probs), probs)


@dataclass(frozen=True)
class ReinMaxRule(RelaxedRule):
    """Draws b ~ p; to autograd the draw has the Jacobian 2·J((p + b)/2) − J(p)/2 in the logits.

    J(p) is that of the softmax where its value is p: diag(p) − ppᵀ, or p(1 − p).
    """

    name: ClassVar[str] = "reinmax"

    def drawn(self, site: SiteContext, dist: Any, logits: Tensor) -> Tensor:
        family = self.family
        probs = family.probs(dist).detach()
        b = family.draw(probs)
        return self._hard(site, b, 2 * family.slope((probs + b) / 2, logits) - family.slope(probs, logits) / 2)


@dataclass(frozen=True)
class TemperedRule(RelaxedRule):
    """One with a temperature, which a schedule may move from call to call.

    Attributes:
        temperature: of the relaxation.
    """

    temperature: Temperature

    def state(self, node: Any) -> nn.Module | None:
        return self.temperature.state()

    def now(self, site: SiteContext, logits: Tensor) -> float:
        """The temperature of this call."""
        return self.temperature.now(site, torch.is_grad_enabled() and logits.requires_grad)


@dataclass(frozen=True)
class GumbelSoftmaxRule(TemperedRule):
    """Draws soft((logits + noise) / temperature), inside the simplex, and cuts nothing."""

    name: ClassVar[str] = "gumbel_softmax"
    relaxes: ClassVar[bool] = True

    def drawn(self, site: SiteContext, dist: Any, logits: Tensor) -> Tensor:
        temperature = self.now(site, logits)
        return self.family.soft(logits + self.family.noise(logits), temperature)


@dataclass(frozen=True)
class StraightThroughGumbelRule(TemperedRule):
    """Draws b = hard(z), z = logits + noise; to autograd the draw is soft(z / temperature)."""

    name: ClassVar[str] = "st_gumbel"

    def drawn(self, site: SiteContext, dist: Any, logits: Tensor) -> Tensor:
        temperature = self.now(site, logits)
        z = logits + self.family.noise(logits)
        return self._hard(site, self.family.hard(z), self.family.soft(z, temperature))


@dataclass(frozen=True)
class GumbelRaoRule(TemperedRule):
    """Draws b ~ p; to autograd the draw is the mean of soft(z / temperature) over draws of z given b.

    The noise z − logits counts as fixed in the derivative, as it does where z is drawn first.

    Attributes:
        samples: number of draws of z.
    """

    name: ClassVar[str] = "gumbel_rao"
    samples: int

    def drawn(self, site: SiteContext, dist: Any, logits: Tensor) -> Tensor:
        family, temperature = self.family, self.now(site, logits)
        with torch.no_grad():
            b = family.draw(family.probs(dist))
            z = family.given(b, logits, family.noise(logits.expand(self.samples, *logits.shape)))
        z = self._hard(site, z, logits.expand_as(z))
        return self._hard(site, b, family.soft(z, temperature).mean(0))
