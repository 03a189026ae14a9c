"""`rp`: the pathwise (reparameterization) estimator."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from propc import propagators
from propc.estimators.estimator import SiteView, register_estimator
from propc.estimators.repeated import Repeated
from propc.estimators.requirements import require_path


@register_estimator("rp")
@dataclass(frozen=True)
class Pathwise(Repeated):
    r"""Pathwise (reparameterization) estimator.

    Approximates: ∇_φ E_{x~p(x;φ)} f(x)
    With:         (∂x/∂φ)ᵀ ∇f(x), x = T(ε; φ); implicit where PyTorch's `rsample` is
                  (Gamma, Beta, Dirichlet)
    Requires:     `rsample`, and f continuous and almost everywhere differentiable, along a
                  differentiable path to every cost that the site influences
    Message:      cotangent on x, [batch, ...] → cotangent on φ
    Unbiased:     yes, under the requirements
    Costs:        those of plain PyTorch; nothing is cut
    Reference:    Kingma & Welling (2014), arXiv:1312.6114; Figurnov et al. (2018), arXiv:1805.08498

    Args:
        samples: how often the site draws, in a plate; the cost returned is the mean. As of `lr`.
        noise: ``"independent"``, or ``"common"`` random numbers for later sites in each of the elements.
        chunk: how many elements the program holds at once, as of `propc.compile`.
    """

    name: ClassVar[str] = "rp"
    samples: int = 1
    noise: str = "independent"
    chunk: int | None = None

    def propagator(self, site: SiteView) -> tuple[propagators.SitePropagator, str]:
        require_path(self.name, site)
        return propagators.PathwiseRule(self._samples()), "asked for"
