"""Antithetic pairs: two draws of one law from opposite random numbers, whose difference in cost is the message."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from propc.distributions.families import family
from propc.distributions.perturbed_logits import Binary
from propc.errors import EstimatorError, message
from propc.ir.nodes.site import Site
from propc.propagators.baselines import Baseline, NoBaseline
from propc.propagators.sites.decision_tree import Pair, categories_of, drawn_pair, tree
from propc.propagators.sites.samples import ONE, Samples
from propc.propagators.sites.site_propagator import Draw, SiteContext, SitePropagator
from propc.runtime.autograd.opposite_draw import opposed
from propc.types import Plate, PlateKind


@dataclass(frozen=True)
class AntitheticRule(SitePropagator):
    r"""Draws pairs (b, b̃), both of p(b; φ), in a plate that holds all b and then all b̃.

    Message ½ f at every token makes the cotangent ½ (f(b) − f(b̃)) Σ_i c_i ∇_φ α_i, where α_i are the log odds of the
    binary decisions on the way to b and b̃ (one for a Bernoulli, a path down a tree for a class), and
    c_i what `coefficients` says of their random numbers. All elements of a row are one pair.

    Attributes:
        samples: how many pairs, and how what comes after them draws.
    """

    samples: Samples = ONE

    @property
    def baselines(self) -> tuple[Baseline, ...]:
        return (NoBaseline(),)  # any other would cancel in the difference

    def plate(self, site: Site, batched: bool) -> Plate | None:
        common, chunk = self.samples.noise == "common", self.samples.chunk
        return Plate(site.name, 2 * self.samples.count, PlateKind.ANTITHETIC, common=common, chunk=chunk)

    @property
    def blind_at_edges(self) -> bool:
        return True

    @abstractmethod
    def coefficients(self, pair: Pair) -> tuple[Tensor, Tensor]:
        """What multiplies the log odds of a decision on the way to b, and those of one on the way to b̃ alone."""

    def draw(self, site: SiteContext, phi: Sequence[Tensor], tangents: Sequence[Tensor | None]) -> Draw:
        if not site.sample_shape:
            raise _alone(site)
        found = family(site.spec)
        assert found is not None  # the estimator asks
        dist = site.build(phi)
        logits, binary = found.logits(dist), isinstance(found, Binary)
        levels = [logits.unsqueeze(-1)] if binary else tree(logits)
        leaves, tangent = drawn_pair(levels, site.sample_shape[0] // 2, self.coefficients)
        value = found.numbered(dist, leaves if binary else categories_of(leaves, logits.shape[-1]))
        row = tangent.flatten(site.lead).sum(site.lead) if tangent.dim() > site.lead else tangent
        return Draw(value, (opposed(site.name, row),))


def _alone(site: SiteContext) -> EstimatorError:
    return EstimatorError(
        message(
            "antithetic draws need a plate, which a propagator inside another does not get",
            "Use 'arm' and 'disarm' by themselves, or 'lr' here.",
            at=f"site {site.name!r}",
        )
    )


@dataclass(frozen=True)
class ArmRule(AntitheticRule):
    """The difference times the random numbers: c = 1 − 2u, where there is something to decide."""

    name: ClassVar[str] = "arm"

    def coefficients(self, pair: Pair) -> tuple[Tensor, Tensor]:
        first, second = (((p > 0) & (p < 1)) * (1 - 2 * u) for p, u in ((pair.p, pair.u), (pair.q, pair.v)))
        return first, second


@dataclass(frozen=True)
class DisArmRule(AntitheticRule):
    """`ArmRule`, averaged over the random numbers that give the same draws.

    c = (b − b̃) σ(|α|) for a decision that both have met, else the score, b − σ(α) or σ(α) − b̃.
    """

    name: ClassVar[str] = "disarm"

    def coefficients(self, pair: Pair) -> tuple[Tensor, Tensor]:
        p, b, opposite = pair.p, pair.b.to(pair.p.dtype), pair.opposite.to(pair.p.dtype)
        together = (b - opposite) * torch.maximum(p, 1 - p)
        if pair.apart is None:
            return together, together
        return torch.where(pair.apart, b - p, together), pair.q - opposite
