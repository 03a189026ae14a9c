"""`reinmax`: the straight-through estimator of second order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from propc import propagators
from propc.estimators.estimator import Estimator, SiteView, register_estimator
from propc.estimators.requirements import require_path_from_draw


@register_estimator("reinmax")
@dataclass(frozen=True)
class ReinMax(Estimator):
    r"""ReinMax: a straight-through estimator that is exact for quadratic costs.

    Approximates: ∇_φ E_{b~p(b;φ)} f(b)
    With:         (2·J((p + b)/2) − ½·J(p))ᵀ ∇f(b) on the logits, J(p) = diag(p) − ppᵀ, or p(1 − p) for a
                  Bernoulli. Its mean replaces each f(e_i) − f(e_j) by ½(∇f(e_i) + ∇f(e_j))ᵀ(e_i − e_j)
    Requires:     Bernoulli or OneHotCategorical, inside Independent too; f differentiable at the
                  outcomes, along a path to every cost
    Message:      cotangent on b, [batch, ...] → cotangent on φ
    Unbiased:     where f is at most quadratic in b, jointly over all sites under `reinmax`; else not. The
                  value returned, f(b), and the gradients of all else are
    Higher:       first derivatives only, an error says so
    Costs:        those of one draw
    Reference:    Liu, Dong, Liu, Yu & Gao (2023), arXiv:2304.08612
    """

    name: ClassVar[str] = "reinmax"

    def propagator(self, site: SiteView) -> tuple[propagators.SitePropagator, str]:
        return propagators.ReinMaxRule(require_path_from_draw(self.name, site)), "asked for"
