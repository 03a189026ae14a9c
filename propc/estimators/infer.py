"""`infer`: an estimator for each site, by what can work there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from propc import propagators
from propc.estimators.base import Estimator, SiteView, register_estimator
from propc.estimators.likelihood_ratio import LikelihoodRatio
from propc.estimators.pathwise import Pathwise


@register_estimator("infer")
@dataclass(frozen=True)
class Infer(Estimator):
    r"""Chooses for each site: `rp` where it works, else `lr`.

    `rp` where the distribution has `rsample` and a differentiable path leads to every cost
    that the site influences; else `lr`, with the leave-one-out baseline where the batch has
    two samples or more. Unbiased as they are. `compiled.explain(...)` says what was chosen
    and why.
    """

    name: ClassVar[str] = "infer"

    def propagator(self, site: SiteView) -> tuple[propagators.SitePropagator, str]:
        if site.spec.has_rsample and not site.blocked:
            return Pathwise().propagator(site)[0], "rsample, and a differentiable path to every cost"
        baseline = "loo" if site.batch is None or site.batch > 1 else None
        rule, _ = LikelihoodRatio(baseline).propagator(site)
        if not site.spec.has_rsample:
            return rule, f"{site.spec} has no rsample"
        return rule, f"no differentiable path to {', '.join(site.blocked)}"
