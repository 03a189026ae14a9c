"""`combine`: any set of estimators, weighted by inverse variance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar

from propc import propagators
from propc.errors import PropcValueError, message
from propc.estimators.estimator import Estimator, SiteView, register_estimator, resolve
from propc.estimators.likelihood_ratio import LikelihoodRatio
from propc.estimators.requirements import require_batch
from propc.propagators.baselines import baseline
from propc.runtime.weighting.weighting import Weighting

if TYPE_CHECKING:
    from propc.ir.pass_request import Step


@dataclass(frozen=True)
class Weighted(Estimator, Weighting):
    """An estimator with the options of inverse-variance weights, which it hands on as one `Weighting`."""

    def combined(self, estimators: Sequence[Any], site: SiteView) -> propagators.SitePropagator:
        """The rule that weighs those of several estimators.

        Raises:
            EstimatorError: two of them are pathwise, one is neither pathwise nor a likelihood ratio, or lacks something
                at the site; a cost is a scalar.
        """
        parts = tuple(self._part(resolve(e), site) for e in estimators)
        if sum(part.passes_path for part in parts) > 1:
            raise site.error(
                f"estimator {self.name!r} has two pathwise parts, which are one and the same", "Keep one of them."
            )
        if site.batch is None:
            raise site.error(
                f"estimator {self.name!r} needs one cost for each sample; a cost is a scalar",
                "Return the cost with shape [batch].",
            )
        weighting = Weighting(**{option.name: getattr(self, option.name) for option in fields(Weighting)})
        return propagators.InverseVariance(parts, weighting)

    def _part(self, part: Estimator, site: SiteView) -> propagators.SitePropagator:
        """The rule of one part; what a likelihood-ratio part lacks, the user's estimator lacks."""
        if isinstance(part, LikelihoodRatio):
            require_batch(self.name, baseline(part.baseline), site)
        rule = part.propagator(site)[0]
        if not isinstance(rule, (propagators.PathwiseRule, propagators.LikelihoodRatioRule)):
            raise site.error(
                f"estimator {self.name!r} weighs pathwise and likelihood-ratio parts; {part.name!r} is {rule!r}",
                "Leave it out, or weigh it in a propagator of your own.",
            )
        return rule


@register_estimator("combine")
@dataclass(frozen=True)
class Combine(Weighted):
    r"""Inverse-variance combination of estimators at each site.

    Approximates: ∇_φ E_{x~p(x;φ)} f(x)
    With:         Σ_c k_c ĝ_c, k_c ∝ 1/V_c, V_c the summed squared deviation of part c's
                  per-sample gradients; the combination is what propagates further back
    Requires:     what its parts require; a draw and costs with a batch dimension
    Message:      what its parts take: the cotangent on x, cost minus baseline [batch]
    Unbiased:     if its parts are and k does not depend on the samples it weighs: exactly for
                  ``weights="rehearsed"``, and ``"past"`` from the second call on; nearly for
                  ``"crossfit"`` (see `TotalPropagation`), not for ``"same"``
    Reference:    Parmas et al. (2018), "PIPPS"; Graybill & Deal (1959), doi:10.2307/2527652

    Args:
        estimators: names or estimators; at most one may be pathwise.
        target, per_coordinate, weights, folds, k_interval, decay: as of `TotalPropagation`.

    Raises:
        PropcValueError: fewer than two estimators, an unknown one, or a wrong option.
    """

    name: ClassVar[str] = "combine"
    estimators: tuple[Any, ...] = ("rp", "lr")

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.estimators, str) or len(self.estimators) < 2:
            raise PropcValueError(
                message(f"a combination needs two estimators or more; got {self.estimators!r}", "Such as ('rp', 'lr').")
            )
        for choice in self.estimators:
            resolve(choice)

    def propagator(self, site: SiteView) -> tuple[propagators.SitePropagator, str]:
        return self.combined(self.estimators, site), "asked for"

    def passes(self, sites: tuple[str, ...]) -> tuple[Step, ...]:
        brought = [each for choice in self.estimators for each in resolve(choice).passes(sites)]
        return tuple(each for i, each in enumerate(brought) if each not in brought[:i])
