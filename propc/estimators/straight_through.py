"""`st`: the straight-through estimator."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from propc import propagators
from propc.estimators.estimator import Estimator, SiteView, register_estimator
from propc.estimators.requirements import require_path_from_draw


@register_estimator("st")
@dataclass(frozen=True)
class StraightThrough(Estimator):
    r"""Straight-through estimator: hard draws, and the cotangent on the draw goes to the probabilities as it is.

    Approximates: ∇_φ E_{b~p(b;φ)} f(b)
    With:         (∂p/∂φ)ᵀ ∇f(b)
    Requires:     Bernoulli or OneHotCategorical, inside Independent too; f differentiable at the
                  outcomes, along a path to every cost
    Message:      cotangent on b, [batch, ...] → cotangent on φ
    Unbiased:     no: the mean is E[∇f(b)]ᵀ ∂p/∂φ, which is right where f is linear. The value returned,
                  f(b), and the gradients of all else are
    Higher:       first derivatives only, an error says so
    Costs:        those of one draw
    Reference:    Bengio, Léonard & Courville (2013), arXiv:1308.3432
    """

    name: ClassVar[str] = "st"

    def propagator(self, site: SiteView) -> tuple[propagators.SitePropagator, str]:
        return propagators.StraightThroughRule(require_path_from_draw(self.name, site)), "asked for"
