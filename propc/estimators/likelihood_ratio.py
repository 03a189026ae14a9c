"""`lr`: the likelihood-ratio (score-function, REINFORCE) estimator."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from propc import propagators
from propc.errors import PropcValueError, message
from propc.estimators.estimator import SiteView, register_estimator
from propc.estimators.repeated import Repeated
from propc.estimators.requirements import require_batch
from propc.propagators.baselines import LeaveOneOut, baseline


@register_estimator("lr")
@dataclass(frozen=True)
class LikelihoodRatio(Repeated):
    r"""Likelihood-ratio (score-function, REINFORCE) estimator.

    Approximates: ∇_φ E_{x~p(x;φ)} f(x)
    With:         (f(x) − b) ∇_φ log p(x; φ), log p summed over everything but the batch
    Requires:     log p differentiable in φ, on a support that does not move with φ; costs of shape
                  [batch]. f need not be smooth, nor known (`propc.opaque`).
    Message:      cost minus baseline, [batch] → cotangent on φ
    Unbiased:     yes, if the baseline does not see its own sample
    Reference:    Williams (1992), doi:10.1007/BF00992696; Kool et al. (2019) for the baseline

    With ``samples=K`` the site draws K times in a plate, and everything after it runs on every draw (`torch.vmap`);
    the cost returned is the mean, and each sample of the batch may be alone. Sites with as many samples share the
    plate: a sequence has K joint trajectories.

    Args:
        baseline: ``"loo"`` (mean of the other samples, of the plate where there is one, else of the batch; the
            default), ``"moving_average"`` (of earlier batches), None, or a callable that gets the
            detached costs [batch], with several samples [samples, batch], and gives a baseline that broadcasts to
            them; an element of it must not depend on the same element of the cost.
        samples: K, how often the site draws for each sample of the batch.
        noise: ``"independent"``, or ``"common"`` random numbers for later sites in each of the K elements.
        chunk: how many of the K elements the program holds at once, as of `propc.compile`.
    """

    name: ClassVar[str] = "lr"
    baseline: Any = "loo"
    samples: int = 1
    noise: str = "independent"
    chunk: int | None = None

    def __post_init__(self) -> None:
        baseline(self.baseline)
        super().__post_init__()

    def propagator(self, site: SiteView) -> tuple[propagators.SitePropagator, str]:
        chosen = baseline(self.baseline)
        require_batch(self.name, chosen, site, self.samples)
        return propagators.LikelihoodRatioRule(chosen, self._samples()), "asked for"


@register_estimator("rloo")
@dataclass(frozen=True)
class LeaveOneOutRatio(LikelihoodRatio):
    r"""`lr` with several samples and their leave-one-out mean as baseline (REINFORCE leave-one-out, RLOO).

    Approximates: ∇_φ E_{x~p(x;φ)} f(x)
    With:         1/(K−1) Σ_k (f(x_k) − f̄) ∇_φ log p(x_k; φ)
    Requires:     what `lr` requires; K ≥ 2
    Message:      cost minus baseline, [samples, batch]
    Unbiased:     yes
    Reference:    Kool, van Hoof & Welling (2019), "Buy 4 REINFORCE samples, get a baseline for free!"

    Args:
        baseline, samples, noise, chunk: as of `lr`.
    """

    name: ClassVar[str] = "rloo"
    keeps_name: ClassVar[bool] = True
    samples: int = 2  # the least that has another

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.samples < 2 and isinstance(baseline(self.baseline), LeaveOneOut):
            raise PropcValueError(
                message(
                    f"estimator 'rloo' has samples={self.samples}: of one sample there is no other to leave in",
                    "Use samples=2 or more, or 'lr', whose baseline is then the mean of the rest of the batch.",
                )
            )
