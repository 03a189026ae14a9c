"""`tp`: total propagation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from propc import propagators
from propc.estimators.combine import Weighted
from propc.estimators.estimator import SiteView, register_estimator
from propc.estimators.likelihood_ratio import LikelihoodRatio
from propc.estimators.requirements import require_path
from propc.propagators.baselines import baseline


@register_estimator("tp")
@dataclass(frozen=True, kw_only=True)
class TotalPropagation(Weighted):
    r"""Total propagation: at each site k·LR + (1 − k)·RP, and the mixture propagates further.

    Approximates: ∇_φ E_{x~p(x;φ)} f(x)
    With:         k = V[RP] / (V[LR] + V[RP]), V the summed squared deviation of per-sample
                  gradients over the batch
    Requires:     what `rp` and `lr` require; four samples or more for weights from the batch
                  (with fewer, k = ½)
    Message:      cotangent on x and cost minus baseline → cotangent on φ
    Unbiased:     for weights="rehearsed", and "past" from the second call on: k is independent of the
                  samples; at the first call of "past" to order 1/B. For "crossfit" exactly
                  at a single site: k of each group of rows, and its baseline, come from one group
                  alone; along a chain the groups couple through the k of later sites. Not for
                  "same" at small batches, where k correlates with what it weighs. Chaotic RNN,
                  β=2.5, B=20, H=16, exact 0.2526: past 0.2513±0.0011, rehearsed 0.2528±0.0015,
                  crossfit 0.2386±0.0018, same 0.2202±0.0012 (see docs/estimators.md).
    Reference:    Parmas, Rasmussen, Peters & Doya (2018), "PIPPS", arXiv:1902.01240;
                  Parmas & Seno (2022), "Proppo"

    Args:
        target: where the variance is taken: the name of an argument, a parameter, or a
            `propc.node`; None (default) takes it at the site's own φ, which costs no
            extra derivative.
        per_coordinate: one k for each coordinate of φ instead of one for the site.
        weights: ``"crossfit"`` (default), ``"past"`` (moving moments of earlier batches; the
            first call takes those of crossfit), ``"same"``, or ``"rehearsed"``: crossfit with k from a
            rehearsal of the reverse pass, in which each group of rows keeps to itself. That takes up to
            twice the reverse pass and gives first derivatives only; an `EstimatorError` where the reverse
            pass does not run as one, as under `propc.passes.Checkpoint`.
        folds: into how many groups of rows ``"crossfit"`` and ``"rehearsed"`` take the batch apart; each
            takes k from the next. With more of them the weights depend less on what they weigh along a chain, and are
            noisier, as each comes from fewer rows.
        k_interval: k is computed at every k_interval-th site, counted from the end, and reused
            between.
        baseline: of the likelihood-ratio part, as of `lr`.
        decay: of the moving moments of ``weights="past"``.
    """

    name: ClassVar[str] = "tp"
    baseline: Any = "loo"

    def __post_init__(self) -> None:
        super().__post_init__()
        baseline(self.baseline)

    def propagator(self, site: SiteView) -> tuple[propagators.SitePropagator, str]:
        require_path(self.name, site)  # here, so that the error names this estimator and not a part of it
        return self.combined(("rp", LikelihoodRatio(self.baseline)), site), "asked for"
