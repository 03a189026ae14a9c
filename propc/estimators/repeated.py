"""What estimators that draw several times share."""

from __future__ import annotations

from propc.estimators.estimator import Estimator, SiteView
from propc.propagators.sites.plain import Plain
from propc.propagators.sites.samples import Samples
from propc.propagators.sites.site_propagator import SitePropagator


class Repeated(Estimator):
    """An estimator with the options `samples`, `noise` and `chunk`, which are fields of each."""

    samples: int
    noise: str
    chunk: int | None

    def __post_init__(self) -> None:
        self._samples()

    def without_gradient(self, site: SiteView) -> SitePropagator:
        return Plain(self._samples())

    def _samples(self) -> Samples:
        """The options, checked."""
        return Samples(self.samples, self.noise, self.chunk)
