"""`enumerate`: the exact expectation over a site of few values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from propc import propagators
from propc.distributions.support import places, values_of
from propc.errors import PropcValueError
from propc.estimators.estimator import Estimator, SiteView, register_estimator
from propc.propagators.sites.samples import Samples, positive

# More configurations than these nobody is told to allow: with 100 rows, 4 GB for each number a row in float32.
_MANY = 10_000_000


@register_estimator("enumerate")
@dataclass(frozen=True)
class Enumerate(Estimator):
    r"""Exact expectation: the program after the site runs on every value that it can take.

    Approximates: nothing; the value and the gradient are exact, given the other sites' draws
    With:         Σ_z p(z; φ) f(z), differentiated as it is; z runs over the joint product of the site's
                  event and batch dimensions other than the leading batch
    Requires:     a distribution with `enumerate_support` (Bernoulli, Categorical, OneHotCategorical, Binomial with
                  one count; inside Independent too), or a user's that has it, whose elements are independent;
                  no more than `budget` configurations for one row of the batch
    Message:      the cotangent on the weights p(z; φ), [configurations, batch]
    Unbiased:     exact, to any order
    Costs:        one run of the program after the site for each configuration, in a plate
    Reference:    the definition of the expectation

    Sites before it and behind it keep their estimators; those behind it draw for every configuration, and their
    messages are weighted with its probability.

    Args:
        budget: the largest number of configurations for one row of the batch. Sites that meet multiply theirs; of a
            million together or more they need a budget as large, at one of them.
        noise: ``"independent"``, or ``"common"`` random numbers for later sites in every configuration.
        chunk: how many configurations the program holds at once, as of `propc.compile`.
    """

    name: ClassVar[str] = "enumerate"
    budget: int = 10_000  # as Storchastic has it
    noise: str = "independent"
    chunk: int | None = None

    def __post_init__(self) -> None:
        positive("budget", self.budget)
        Samples(1, self.noise, self.chunk)

    def propagator(self, site: SiteView) -> tuple[propagators.SitePropagator, str]:
        values = values_of(site.spec, site.phi)
        if values is None:
            raise site.error(
                f"estimator 'enumerate' needs a distribution whose values can be listed; those of {site.spec} cannot",
                f"It works on Bernoulli, Categorical and OneHotCategorical; use {site.elsewhere} here.",
            )
        where = places(site.spec, batched=site.batched)
        count = values**where
        if count > self.budget:
            shown = f"{count:,}" if count <= _MANY**2 else f"{values}^{where}"
            larger = f"Use budget={count} (and chunk= for the memory), or " if count <= _MANY else "Use 'local', or "
            raise site.error(
                f"estimator 'enumerate' would run {shown} configurations for one row of the batch ({values} values "
                f"in {where} places); the budget is {self.budget:,}",
                f"{larger}'lr' with several samples.",
            )
        rule = propagators.EnumerateRule(values, where, self.noise == "common", self.chunk, self.budget)
        return rule, "asked for"

    def without_gradient(self, site: SiteView) -> propagators.SitePropagator:
        try:
            return self.propagator(site)[0]
        except PropcValueError:  # what it has no rule for can still be drawn
            return propagators.Plain()
