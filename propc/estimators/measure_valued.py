"""`mvd`: measure-valued derivatives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from propc import propagators
from propc.distributions.measures import measured_families, measures_of
from propc.distributions.support import event_of, parameters, places, values_of
from propc.estimators.estimator import Estimator, SiteView, register_estimator
from propc.estimators.local import Local
from propc.propagators.sites.samples import Samples


@register_estimator("mvd")
@dataclass(frozen=True)
class MeasureValued(Estimator):
    r"""Measure-valued derivative: the derivative of a law in a parameter, as a difference of two laws.

    Approximates: ∇_φ E_{x~p(x;φ)} f(x)
    With:         for each element of x and each of its parameters c·[E f(x⁺) − E f(x⁻)], one element at a time;
                  the draw itself serves as one of the two where it can, and they are coupled, so that f(x⁺) and
                  f(x⁻) are near each other
                  Normal μ: c = 1/(σ√2π), x^± = μ ± σW, W Rayleigh; σ: c = 1/σ, x⁺ = μ + σM with M double-sided
                  Maxwell, x⁻ = x
                  Gamma β: c = α/β, x⁺ = x, x⁻ ~ Gamma(α + 1, β); Exponential λ: the same with α = 1
                  Poisson λ: c = 1, x⁺ = x + 1, x⁻ = x
                  Bernoulli, Categorical, OneHotCategorical: `local`
                  a family of yours: what `propc.register_measure` says of it
    Requires:     one of these, inside Independent too; of a Gamma, a concentration that wants no gradient; every
                  path from the site to a cost free of propagators and refitted Gaussians. f need not be smooth,
                  nor known
    Message:      cost of the alternative minus cost, [alternatives, batch]
    Unbiased:     yes, for first derivatives; higher ones are an error
    Costs:        for each element two runs (Normal μ) or one (each other) of what of the program depends on the
                  site, without gradient
    Reference:    Pflug (1989), "Sampling derivatives of probabilities"; Mohamed, Rosca, Figurnov & Mnih (2020),
                  "Monte Carlo gradient estimation in machine learning", section 6, arXiv:1906.10652

    The value returned is the cost of an ordinary draw.

    Args:
        noise, chunk: as of `Local`.
    """

    name: ClassVar[str] = "mvd"
    keeps_name: ClassVar[bool] = True
    noise: str = "independent"
    chunk: int | None = None

    def __post_init__(self) -> None:
        Samples(1, self.noise, self.chunk)

    def propagator(self, site: SiteView) -> tuple[propagators.SitePropagator, str]:
        kind = site.spec.innermost.type
        measures = measures_of(kind)
        if not measures:
            if values_of(site.spec, site.phi) is not None:
                return Local(self.noise, self.chunk).propagator(site)
            raise site.error(
                f"estimator 'mvd' has no measure-valued derivative of {site.spec}",
                f"It knows {', '.join(measured_families())}, Bernoulli, Categorical and OneHotCategorical, inside "
                f"Independent too; use {site.elsewhere} here, or propc.register_measure.",
            )
        if event_of(site.spec):
            raise site.error(
                f"estimator 'mvd' changes one number at a time; those of {site.spec} are drawn together",
                f"Use {site.elsewhere} here.",
            )
        wanted = tuple(name for name, i in parameters(site.spec).items() if site.phi[i].requires_grad)
        for name in wanted:
            if name not in measures:
                raise site.error(
                    f"estimator 'mvd' has no derivative of {kind.__name__} in {name!r}, which wants a gradient",
                    f"It knows {', '.join(measures)}; let {name!r} be fixed, or use {site.elsewhere} here.",
                )
        each = sum(measures[name].each for name in wanted)
        if not each:
            return propagators.Plain(), "no parameter of its distribution wants a gradient"
        count = places(site.spec, batched=site.batched)
        return propagators.MeasureValuedRule(count, each, self.noise == "common", self.chunk, wanted), "asked for"
