"""`local`: the local expectation gradient of discrete sites."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from propc import propagators
from propc.distributions.support import places, values_of
from propc.estimators.estimator import Estimator, SiteView, register_estimator
from propc.propagators.sites.samples import Samples


@register_estimator("local")
@dataclass(frozen=True)
class Local(Estimator):
    r"""Local expectation gradient: every element of a draw takes all its values, one at a time.

    Approximates: ∇_φ E_{z~p(z;φ)} f(z), p = Π_j π_j
    With:         Σ_j Σ_{k≠z_j} ∇π_jk · [f(z with k in place j) − f(z)]: the exact expectation over each element,
                  given a draw of the others
    Requires:     a distribution with `enumerate_support` (Bernoulli, Categorical, OneHotCategorical; inside
                  Independent too), or a user's that has it, whose elements are independent; every path from the
                  site to a cost free of propagators and refitted Gaussians. f need not be smooth, nor known
    Message:      cost of the alternative minus cost, [alternatives, batch]
    Unbiased:     yes, for first derivatives; higher ones are an error
    Costs:        (values − 1) · elements runs, without gradient, of what of the program depends on the site.
                  What lies before it, or beside it, is not run again
    Reference:    Titsias & Lázaro-Gredilla (2015), "Local expectation gradients for black box variational
                  inference"

    The value returned is the cost of the draw. Later sites are drawn anew for every alternative (enumerated ones
    stay enumerated); parameters behind the site get their gradient from the draw alone.

    Args:
        noise: of later sites on the alternatives: ``"independent"``, or ``"common"``, which draws them from the
            random numbers of the draw.
        chunk: how many alternatives the program holds at once, as of `propc.compile`.
    """

    name: ClassVar[str] = "local"
    noise: str = "independent"
    chunk: int | None = None

    def __post_init__(self) -> None:
        Samples(1, self.noise, self.chunk)

    def propagator(self, site: SiteView) -> tuple[propagators.SitePropagator, str]:
        values = values_of(site.spec, site.phi)
        if values is None:
            raise site.error(
                f"estimator 'local' needs independent elements whose values can be listed; those of {site.spec} cannot",
                "It works on Bernoulli, Categorical and OneHotCategorical, inside Independent too; use 'mvd', 'lr' or "
                "'rp' here.",
            )
        count = places(site.spec, batched=site.batched)
        return propagators.LocalRule(count, values - 1, self.noise == "common", self.chunk), "asked for"
