"""`rp`: the pathwise (reparameterization) estimator."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from propc import propagators
from propc.estimators.estimator import Estimator, SiteView, register_estimator
from propc.propagators.sites.samples import Samples


@register_estimator("rp")
@dataclass(frozen=True)
class Pathwise(Estimator):
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

    def __post_init__(self) -> None:
        self._samples()

    def propagator(self, site: SiteView) -> tuple[propagators.SitePropagator, str]:
        require_path(self.name, site)
        return propagators.PathwiseRule(self._samples()), "asked for"

    def without_gradient(self, site: SiteView) -> propagators.SitePropagator:
        return propagators.Plain(self._samples())

    def _samples(self) -> Samples:
        return Samples(self.samples, self.noise, self.chunk)


def require_path(name: str, site: SiteView) -> None:
    """Check that pathwise derivatives exist at the site and reach every cost.

    Raises:
        EstimatorError: the distribution has no `rsample`, or a cost cannot be reached.
    """
    if not site.spec.has_rsample:
        raise site.error(
            f"estimator {name!r} needs a reparameterizable distribution; {site.spec} has no rsample",
            "Try estimator='lr'.",
        )
    if site.blocked:
        costs = ", ".join(map(repr, site.blocked))
        raise site.error(
            f"estimator {name!r} needs a differentiable path to every cost; none leads to {costs}",
            "Try estimator='lr', or remove the detach, comparison, rounding or black box on the way.",
        )
