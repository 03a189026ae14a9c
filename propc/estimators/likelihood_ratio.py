"""`lr`: the likelihood-ratio (score-function, REINFORCE) estimator."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from propc import propagators
from propc.baselines import LeaveOneOut, baseline
from propc.estimators.base import Estimator, SiteView, register_estimator
from propc.propagators import Baseline


@register_estimator("lr")
@dataclass(frozen=True)
class LikelihoodRatio(Estimator):
    r"""Likelihood-ratio (score-function, REINFORCE) estimator.

    Approximates: ∇_φ E_{x~p(x;φ)} f(x)
    With:         (f(x) − b) ∇_φ log p(x; φ), log p summed over everything but the batch
    Requires:     log p differentiable in φ; costs of shape [batch]. f need not be smooth,
                  nor known (`propc.opaque`).
    Message:      cost minus baseline, [batch] → cotangent on φ
    Unbiased:     yes, if the baseline does not see its own sample
    Reference:    Williams (1992), doi:10.1007/BF00992696; Kool et al. (2019) for the baseline

    Args:
        baseline: ``"loo"`` (mean of the other samples in the batch, the default),
            ``"moving_average"`` (of earlier batches), None, or a callable that gets the
            detached costs [batch] and gives a baseline that broadcasts to [batch]; row i of it
            must not depend on cost i.
    """

    name: ClassVar[str] = "lr"
    baseline: Any = "loo"

    def __post_init__(self) -> None:
        baseline(self.baseline)

    def propagator(self, site: SiteView) -> tuple[propagators.SitePropagator, str]:
        chosen = baseline(self.baseline)
        require_batch(self.name, chosen, site)
        return propagators.LikelihoodRatio(chosen), "asked for"


def require_batch(name: str, chosen: Baseline, site: SiteView) -> None:
    """Check that the costs and the site hold independent samples along their leading dimension.

    Raises:
        EstimatorError: a scalar cost, a site without the batch dimension, or a single
            sample under a leave-one-out baseline.
    """
    if site.batch is None:
        raise site.error(
            f"estimator {name!r} needs one cost for each sample; a cost is a scalar",
            "Return the cost with shape [batch] and take its mean outside the compiled function.",
        )
    if site.spec.rows() != site.batch:
        raise site.error(
            f"estimator {name!r} needs the batch as the leading dimension of the distribution; the costs have "
            f"{site.batch} samples and {site.spec} has batch shape {list(site.spec.batch_shape)}",
            f"Expand its parameters to [{site.batch}, ...], so that every sample has a draw of its own.",
        )
    if site.batch < 2 and isinstance(chosen, LeaveOneOut):
        raise site.error(
            f"estimator {name!r} has a leave-one-out baseline and a batch of 1",
            "Use two samples or more, or baseline=None or 'moving_average'.",
        )
