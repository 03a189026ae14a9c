"""`gs`, `gs-tp` and `gr`: gradients through a Gaussian that is refitted to the batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from propc import propagators
from propc.estimators.estimator import Estimator, SiteView, register_estimator
from propc.estimators.requirements import require_batch, require_path
from propc.estimators.total_propagation import TotalPropagation
from propc.ir.nodes.resample import JITTER
from propc.ir.pass_request import PassRequest
from propc.propagators.baselines import baseline
from propc.propagators.nodes.gaussian_fit import check_refit


@dataclass(frozen=True)
class Refitted(Estimator):
    """What the three have in common: the node that they insert.

    Args:
        at, costs, shrinkage, jitter: as of the pass `propc.passes.GaussianShaping`. By default a Gaussian is
            refitted, for each cost, to the sites that reach it without another site between.
    """

    keeps_name: ClassVar[bool] = True
    at: str | Sequence[str] | None = None
    costs: str | Sequence[str] | None = None
    shrinkage: float | None = None
    jitter: float = JITTER

    def __post_init__(self) -> None:
        for option in ("at", "costs"):  # hashable and comparable, as estimators are
            value = getattr(self, option)
            if isinstance(value, list):
                object.__setattr__(self, option, tuple(value))
        check_refit(self.shrinkage, self.jitter, at=self.at, costs=self.costs)

    def passes(self, sites: tuple[str, ...]) -> tuple[PassRequest, ...]:
        options = {"at": self.at, "costs": self.costs, "shrinkage": self.shrinkage, "jitter": self.jitter}
        return (PassRequest.of("gaussian-shaping", sites=sites or None, **options),)


@register_estimator("gs")
@dataclass(frozen=True)
class ShapedLikelihoodRatio(Refitted):
    r"""Gaussian shaping: `lr` with a shaped message in place of the cost.

    Approximates: ∇_φ E f(x′), x′ ~ N(μ, Σ), μ and Σ the mean and covariance of the refitted values x
    With:         g ∇_φ log p, g_i = c_μᵀ(x_i − μ) + ⟨c_Σ, (x_i − μ)(x_i − μ)ᵀ − Σ_b⟩; c_μ and c_Σ the
                  gradients of the batch's costs in μ and Σ, Σ_b the covariance over 1/B
    Requires:     what `lr` requires; rows that are samples of one law, more of them than dimensions;
                  costs differentiable in x′
    Message:      g of the resample node, [batch]; costs that do not pass it, as of `lr`
    Unbiased:     to order 1/B (moments are those of the batch) where x is Gaussian, given
                  everything else that the costs depend on. Else the gradient is that of the costs under
                  the Gaussian of x's mean and covariance
    Costs:        one covariance and one Cholesky factor a node; `lr`'s at the sites
    Reference:    Parmas, Rasmussen, Peters & Doya (2018), "PIPPS", arXiv:1902.01240; Parmas & Seno (2022), "Proppo"

    Weights that the user gives to rows enter through their sum: all rows share the message of the
    refitted Gaussian evenly.

    Args:
        at, costs, shrinkage, jitter: as of the pass `propc.passes.GaussianShaping`.
        baseline: as of `lr`, for costs that reach the site round the node.
    """

    name: ClassVar[str] = "gs"
    baseline: Any = "loo"

    def __post_init__(self) -> None:
        super().__post_init__()
        baseline(self.baseline)

    def propagator(self, site: SiteView) -> tuple[propagators.SitePropagator, str]:
        chosen = baseline(self.baseline)
        require_batch(self.name, chosen, site)
        return propagators.LikelihoodRatioRule(chosen), "asked for"


@register_estimator("gs-tp")
@dataclass(frozen=True)
class ShapedTotalPropagation(Refitted, TotalPropagation):
    r"""Total propagation before a refitted Gaussian: shaped messages and cotangents, mixed at each site.

    Approximates: what `gs` approximates
    With:         k·GS + (1 − k)·GR at each site, k as of `tp`
    Requires:     what `gs` and `rp` require
    Message:      g of the resample node, and the cotangent on x
    Unbiased:     where `gs` is, as far as `tp` is
    Reference:    Parmas et al. (2018), "PIPPS"; Parmas & Seno (2022), "Proppo"

    Args:
        at, costs, shrinkage, jitter: as of the pass `propc.passes.GaussianShaping`.
        target, per_coordinate, weights, folds, k_interval, baseline, decay: as of `tp`.
    """

    name: ClassVar[str] = "gs-tp"

    def __post_init__(self) -> None:
        super().__post_init__()
        TotalPropagation.__post_init__(self)


@register_estimator("gr")
@dataclass(frozen=True)
class GaussianResampling(Refitted):
    r"""Gaussian resampling: pathwise through the mean and covariance of the batch.

    Approximates: what `gs` approximates
    With:         (∂x/∂φ)ᵀ (c_μ/B + 2/(B − 1) c_Σ (x − μ)), the derivative of μ and Σ along the path
    Requires:     what `rp` requires; rows that are samples of one law, more of them than dimensions
    Message:      the cotangent on x that comes through μ and Σ
    Unbiased:     where `gs` is. It smooths: c_μ and c_Σ are those of the whole batch
    Reference:    Parmas & Seno (2022), "Proppo"

    Args:
        at, costs, shrinkage, jitter: as of the pass `propc.passes.GaussianShaping`.
    """

    name: ClassVar[str] = "gr"

    def propagator(self, site: SiteView) -> tuple[propagators.SitePropagator, str]:
        require_path(self.name, site)
        return propagators.PathwiseRule(), "asked for"
