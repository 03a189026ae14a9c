"""`vimco`: the score function under a multi-sample bound."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from propc import propagators
from propc.errors import PropcValueError, message
from propc.estimators.estimator import SiteView, register_estimator
from propc.estimators.repeated import Repeated
from propc.propagators.baselines import GeometricMean, LeaveOneOut
from propc.util.configure import one_of

MEANS = {"geometric": GeometricMean(), "arithmetic": LeaveOneOut()}


@register_estimator("vimco")
@dataclass(frozen=True)
class Vimco(Repeated):
    r"""VIMCO: likelihood ratio for a multi-sample bound, each sample's weight replaced by the others' mean.

    Approximates: ∇_φ E L, L = log 1/K Σ_k w_k, z_1…z_K ~ p(z; φ) (`propc.bound`)
    With:         Σ_k (L − L_k) ∇_φ log p(z_k; φ) + Σ_k w_k/Σ_j w_j · ∂ log w_k/∂φ; L_k is L with the mean of
                  the other weights in place of w_k
    Requires:     what `lr` requires, and a bound among the costs; K ≥ 2
    Message:      bound minus its own baseline for each sample, [samples, batch] → cotangent on φ
    Unbiased:     yes, of any order
    Costs:        K runs of the program after the site, in a plate
    Reference:    Mnih & Rezende (2016), "Variational inference for Monte Carlo objectives", arXiv:1602.06725

    Costs that are no bounds send what they send under `rloo`.

    Args:
        samples: K.
        mean: ``"geometric"`` (default), or ``"arithmetic"``: L_k is then the bound of the other samples, as under
            ``lr(samples=K)``.
        noise: ``"independent"``, or ``"common"`` random numbers for later sites in each of the K elements.
        chunk: how many of the K elements the program holds at once, as of `propc.compile`.
    """

    name: ClassVar[str] = "vimco"
    keeps_name: ClassVar[bool] = True
    samples: int = 5  # a choice; two are the least
    mean: str = "geometric"
    noise: str = "independent"
    chunk: int | None = None

    def __post_init__(self) -> None:
        one_of("mean", self.mean, tuple(MEANS))
        super().__post_init__()
        if self.samples < 2:
            raise PropcValueError(
                message(
                    f"estimator 'vimco' has samples={self.samples}: of one sample there is no other to stand in for it",
                    "Use samples=2 or more, or 'lr', whose baseline is then the mean of the rest of the batch.",
                )
            )

    def propagator(self, site: SiteView) -> tuple[propagators.SitePropagator, str]:
        if not site.bounds:
            costs = ", ".join(map(repr, site.costs)) or "none"
            raise site.error(
                f"estimator 'vimco' needs a multi-sample bound among the costs that the site influences: {costs}",
                "Return propc.bound(log_weight), or use 'rloo' for the mean of the costs.",
            )
        return propagators.LikelihoodRatioRule(MEANS[self.mean], self._samples()), "asked for"
