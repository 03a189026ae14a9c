"""`gumbel_rao`: the straight-through Gumbel-softmax estimator, averaged over its noise given the draw."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from propc import propagators
from propc.estimators.estimator import Estimator, SiteView, register_estimator
from propc.estimators.requirements import require_path_from_draw
from propc.propagators.sites.samples import positive
from propc.propagators.sites.temperature import Temperature


@register_estimator("gumbel_rao")
@dataclass(frozen=True)
class GumbelRao(Estimator):
    r"""Gumbel-Rao: `st_gumbel` with the mean Jacobian of K relaxations that give the same draw.

    Approximates: ∇_φ E_{b~p(b;φ)} f(b)
    With:         (1/K Σ_k ∂y_k/∂φ)ᵀ ∇f(b), y_k = softmax(z_k/t), z_k ~ p(z | b); the noise z_k − log p
                  counts as fixed in the derivative
    Requires:     Bernoulli or OneHotCategorical, inside Independent too; f differentiable at the
                  outcomes, along a path to every cost
    Message:      cotangent on b, [batch, ...] → cotangent on φ
    Unbiased:     no: it has the mean of `st_gumbel`, and no more than its variance. The value returned,
                  f(b), and the gradients of all else are unbiased
    Higher:       first derivatives only, an error says so
    Costs:        one evaluation of f, K relaxations of the draw
    Reference:    Paulus, Maddison & Krause (2021), arXiv:2010.04838

    Args:
        samples: K. Ten (default) leave a tenth of the variance that averaging can remove.
        temperature: t, a number or a schedule, as of `GumbelSoftmax`. As the variance is less, it may be
            lower than that of `st_gumbel`.
    """

    name: ClassVar[str] = "gumbel_rao"
    samples: int = 10
    temperature: Any = 1.0

    def __post_init__(self) -> None:
        Temperature(self.temperature)
        positive("samples", self.samples)

    def propagator(self, site: SiteView) -> tuple[propagators.SitePropagator, str]:
        found = require_path_from_draw(self.name, site)
        return propagators.GumbelRaoRule(found, self.samples, Temperature(self.temperature)), "asked for"
