"""`arm` and `disarm`: pairs of antithetic draws of discrete sites."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from propc import propagators
from propc.distributions.families import family
from propc.errors import PropcValueError
from propc.estimators.estimator import SiteView, register_estimator
from propc.estimators.repeated import Repeated


@dataclass(frozen=True)
class Antithetic(Repeated):
    """What `arm` and `disarm` have in common, but for the rule."""

    rule: ClassVar[Callable[..., propagators.AntitheticRule]]
    samples: int = 1
    noise: str = "independent"
    chunk: int | None = None

    def propagator(self, site: SiteView) -> tuple[propagators.SitePropagator, str]:
        if family(site.spec) is None:
            raise site.error(
                f"estimator {self.name!r} has no rule for {site.spec}",
                "It works on Bernoulli, Categorical and OneHotCategorical, inside Independent too; use "
                f"{'rp' if site.spec.has_rsample else 'rloo'!r} here.",
            )
        return self.rule(self._samples()), "asked for"

    def without_gradient(self, site: SiteView) -> propagators.SitePropagator:
        try:
            return self.propagator(site)[0]
        except PropcValueError:  # what it has no rule for can still be drawn
            return propagators.Plain()


@register_estimator("disarm")
@dataclass(frozen=True)
class DisArm(Antithetic):
    r"""DisARM: the difference in cost of two antithetic draws, times what the draws say of the random numbers.

    Approximates: ∇_φ E_{b~p(b;φ)} f(b)
    With:         ½ [f(b) − f(b̃)] (b_i − b̃_i) σ(|α_i|) for the logit α_i of a Bernoulli b_i; b = 1[u < σ(α)] and
                  b̃ = 1[1 − u < σ(α)] for all elements of a row together. A class is reached by binary decisions
                  down a tree, α_i their log odds (DisARM-Tree); where only one of b and b̃ meets a decision, its
                  score b_i − σ(α_i), or −(b̃_i − σ(α_i)), stands in place of (b_i − b̃_i) σ(|α_i|)
    Requires:     Bernoulli, Categorical or OneHotCategorical, by logits or probs, inside Independent too. f need
                  be neither smooth nor known
    Message:      ½ f at each draw, [2, batch] → cotangent on φ. No baseline: it would cancel
    Unbiased:     yes. First derivatives only
    Costs:        two runs of the program after the site, in a plate; n sites multiply to 2^n where they depend
                  on each other, and share one pair where they do not
    Reference:    Dong, Mnih & Tucker (2020), arXiv:2006.10680; (2021), arXiv:2106.08056 for classes; Yin, Ho,
                  Yan, Qian & Zhou (2020), "Probabilistic best subset selection" (unbiased U2G), is the same

    Both are draws of the site, so what comes after it gets the mean of two gradients, and the value is the mean
    of two costs.

    Args:
        samples: how many pairs.
        noise: ``"independent"``, or ``"common"`` random numbers for later sites in both of a pair.
        chunk: how many draws the program holds at once, as of `propc.compile`.
    """

    name: ClassVar[str] = "disarm"
    rule = propagators.DisArmRule


@register_estimator("arm")
@dataclass(frozen=True)
class Arm(Antithetic):
    r"""ARM, augment-REINFORCE-merge: the difference in cost of two antithetic draws, times their random numbers.

    Approximates: ∇_φ E_{b~p(b;φ)} f(b)
    With:         [f(b̃) − f(b)] (u_i − ½) for the logit of a Bernoulli; b = 1[u < σ(α)], b̃ = 1[1 − u < σ(α)]. A
                  class is reached by binary decisions down a tree, as under `disarm`
    Requires:     as `disarm`
    Message:      as `disarm`
    Unbiased:     yes; `disarm` is its mean given the draws, and never varies more. First derivatives only
    Costs:        as `disarm`
    Reference:    Yin & Zhou (2019), arXiv:1807.11143

    Args:
        samples, noise, chunk: as of `disarm`.
    """

    name: ClassVar[str] = "arm"
    rule = propagators.ArmRule
