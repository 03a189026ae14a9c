"""`st_gumbel`: the straight-through Gumbel-softmax estimator."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from propc import propagators
from propc.estimators.estimator import Estimator, SiteView, register_estimator
from propc.estimators.requirements import require_path_from_draw
from propc.propagators.sites.temperature import Temperature


@register_estimator("st_gumbel")
@dataclass(frozen=True)
class StraightThroughGumbel(Estimator):
    r"""Straight-through Gumbel-softmax: hard draws, and the cotangent on the draw goes to its own relaxation.

    Approximates: ∇_φ E_{b~p(b;φ)} f(b)
    With:         (∂y/∂φ)ᵀ ∇f(b), y = softmax(z/t), b = the largest of z = log p + Gumbel noise; for a
                  Bernoulli y = σ(z/t), b = 1[z > 0], z = log p/(1 − p) + logistic noise
    Requires:     Bernoulli or OneHotCategorical, inside Independent too; f differentiable at the
                  outcomes, along a path to every cost
    Message:      cotangent on b, [batch, ...] → cotangent on φ
    Unbiased:     no, not for linear f either. The value returned, f(b), and the gradients of all else are
    Higher:       first derivatives only, an error says so
    Costs:        those of `gumbel_softmax` and of the hard draw
    Reference:    Jang, Gu & Poole (2017), arXiv:1611.01144

    Args:
        temperature: t, a number or a schedule, as of `GumbelSoftmax`.
    """

    name: ClassVar[str] = "st_gumbel"
    temperature: Any = 1.0

    def __post_init__(self) -> None:
        Temperature(self.temperature)

    def propagator(self, site: SiteView) -> tuple[propagators.SitePropagator, str]:
        found = require_path_from_draw(self.name, site)
        return propagators.StraightThroughGumbelRule(found, Temperature(self.temperature)), "asked for"
