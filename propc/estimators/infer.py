"""`infer`: an estimator for each site, by what can work there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from propc.distributions.families import family
from propc.distributions.support import moving_ends, places, values_of
from propc.estimators.antithetic import DisArm
from propc.estimators.enumerate import Enumerate
from propc.estimators.estimator import Estimator, SiteView, register_estimator
from propc.estimators.likelihood_ratio import LikelihoodRatio
from propc.estimators.local import Local
from propc.estimators.pathwise import Pathwise
from propc.estimators.vimco import Vimco
from propc.propagators import Propagator
from propc.propagators.sites.samples import positive


@register_estimator("infer")
@dataclass(frozen=True)
class Infer(Estimator):
    r"""Chooses for each site: `rp` where it works, else the score-function estimator of least variance in its budget.

    `rp` where the distribution has `rsample`, a differentiable path leads to every cost that the site influences, and
    none is known to jump (the first calls look for it). Elsewhere, if the program behind the site may run `budget`
    times:

    1. `enumerate`, where the site has no more configurations and no other site before it or behind it
       (enumerations multiply);
    2. `local`, where all elements have no more alternatives, with the draw;
    3. `disarm`, for a discrete site without others before it or behind it (pairs multiply);
    4. `lr` with `budget` samples (shared by sites with as many); with one the leave-one-out baseline of the batch.

    Under a multi-sample bound (`propc.bound`), of which enumeration and pairs would make another one: `vimco` with
    `budget` samples, or `lr` with one.

    A scalar cost, or a batch of one, has no other samples to compare with: the budget is 2 at least.
    All of them are unbiased. `compiled.explain(...)` says what was chosen and why.

    Args:
        budget: how often the program behind a site that `rp` cannot serve may run at a call.
    """

    name: ClassVar[str] = "infer"
    budget: int = 1

    def __post_init__(self) -> None:
        positive("budget", self.budget)

    def propagator(self, site: SiteView) -> tuple[Propagator, str]:
        path = site.spec.has_rsample and not site.blocked
        if path and (not site.jumps or moving_ends(site.spec, site.phi)):  # no score sees ends that move
            return Pathwise().propagator(site)[0], "rsample, and a differentiable path to every cost"
        chosen, why = self._by_score(site)
        if path:
            lacks = f"a jump {site.jumps[0]}"
        else:
            lacks = f"no differentiable path to {', '.join(site.blocked)}" if site.spec.has_rsample else "no rsample"
        return chosen.propagator(site)[0], f"{lacks}; {why}" if why else lacks

    def _by_score(self, site: SiteView) -> tuple[Estimator, str]:
        """What serves without a path, and why."""
        lonely = site.batch is None or site.batch < 2
        if site.bounds:
            return _under_a_bound(self.budget, lonely)
        budget = max(self.budget, 2) if lonely else self.budget
        values = values_of(site.spec, site.phi)
        if values is not None:
            elements = places(site.spec, batched=site.batched)
            if site.alone and values**elements <= budget:
                return Enumerate(budget), f"{values**elements} configurations"
            if 1 + elements * (values - 1) <= budget:
                return Local(), f"{elements * (values - 1)} alternatives"
        if budget > 1 and site.alone and family(site.spec) is not None:
            return DisArm(budget // 2), "antithetic pairs"
        return LikelihoodRatio(samples=budget), f"{budget} samples" if budget > 1 else ""


def _under_a_bound(budget: int, lonely: bool) -> tuple[Estimator, str]:
    if budget > 1:
        return Vimco(budget), f"{budget} samples of a bound"
    return LikelihoodRatio(None if lonely else "loo"), ""
