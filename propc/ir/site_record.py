"""What is known of a site, whoever works at it."""

from __future__ import annotations

from dataclasses import dataclass

from propc.distributions.spec import DistributionSpec
from propc.errors import EstimatorError, message
from propc.types import Source


@dataclass(frozen=True)
class SiteRecord:
    """A site as estimators and rules see it, who each know more of it.

    Attributes:
        name: of the site.
        spec: its distribution without tensors.
        shape: of a draw, without plates.
        where: the user's line.
        batch: number of rows of the costs; None for scalar costs.
    """

    name: str
    spec: DistributionSpec
    shape: tuple[int, ...]
    where: Source
    batch: int | None

    @property
    def batched(self) -> bool:
        """Whether the site has a draw for each sample of the batch."""
        return self.batch is not None and self.spec.rows() == self.batch

    def error(self, finding: str, fix: str) -> EstimatorError:
        """An error at this site."""
        return EstimatorError(message(finding, fix, at=f"site {self.name!r}", where=self.where))
