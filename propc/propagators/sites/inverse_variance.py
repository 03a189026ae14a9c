"""Inverse-variance weighting of several propagators at one site; of two, total propagation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from propc.distributions.score import drawn, row_score
from propc.distributions.spec import DistributionSpec
from propc.errors import EstimatorError, message
from propc.propagators.baselines import Baseline, LeaveOneOut
from propc.propagators.registry import register_propagator
from propc.propagators.sites.likelihood_ratio import LikelihoodRatioRule
from propc.propagators.sites.pathwise import PathwiseRule
from propc.propagators.sites.plain import Plain
from propc.propagators.sites.site_propagator import Draw, SiteContext, SitePropagator
from propc.runtime.autograd.redraw import redrawn
from propc.runtime.autograd.tokens import token
from propc.runtime.weighting.mix import Mix
from propc.runtime.weighting.mixing import Mixing
from propc.runtime.weighting.moving_variance import PastVariances
from propc.runtime.weighting.normal_total import total
from propc.runtime.weighting.per_sample_norms import Norms
from propc.runtime.weighting.weighting import REHEARSED, Weighting


@dataclass(frozen=True)
class InverseVariance(SitePropagator):
    """Every part computes its cotangent on φ; they are combined with weights ∝ 1/variance.

    Attributes:
        parts: the propagators; at most one of them passes the path.
        weighting: which variance, over which samples.
        donor: a later site whose weights this one reuses, or None to compute its own.
        norms: how variances at the weighting target are taken without its tangents; set by expand-targets.
    """

    name: ClassVar[str] = "inverse-variance"
    passes_path: ClassVar[bool] = True
    in_rows: ClassVar[bool] = True
    parts: tuple[SitePropagator, ...]
    weighting: Weighting
    donor: str | None = None
    norms: Norms | None = None

    def __post_init__(self) -> None:
        groups = self.weighting.groups
        if groups > 1:
            object.__setattr__(self, "parts", tuple(_within_groups(part, groups) for part in self.parts))

    def named_parts(self) -> Mapping[str, Any]:
        return {**{part.name: part for part in self.parts}, "weighting": self.weighting}

    def with_parts(self, **parts: Any) -> InverseVariance:
        known = {**self.named_parts(), **parts}
        weighting = known.pop("weighting")
        return replace(self, parts=tuple(part for part in known.values() if part is not None), weighting=weighting)

    @property
    def baselines(self) -> tuple[Baseline, ...]:
        return tuple(b for part in self.parts for b in part.baselines)

    @property
    def traceable(self) -> bool:
        return all(part.traceable for part in self.parts)

    @property
    def scores(self) -> bool:  # type: ignore[override]
        return any(part.scores for part in self.parts)

    @property
    def mixes(self) -> int:
        return len(self.parts)

    @property
    def weighting_target(self) -> str | None:
        return self.weighting.target

    def with_norms(self, norms: Norms) -> InverseVariance:
        return replace(self, norms=norms)

    @property
    def weights_interval(self) -> int:
        return self.weighting.k_interval

    @property
    def shares_weights(self) -> bool:
        return self.donor is not None or self.weighting.k_interval > 1

    def with_donor(self, site: str) -> InverseVariance:
        return replace(self, donor=site)

    @property
    def rehearses(self) -> bool:
        return self.weighting.weights == REHEARSED

    def state(self, node: Any) -> nn.Module | None:
        return PastVariances() if self.weighting.weights == "past" else None

    def anew(self) -> SitePropagator:
        return Plain()

    def draw(self, site: SiteContext, phi: Sequence[Tensor], tangents: Sequence[Tensor | None]) -> Draw:
        if site.normal is not None and self._is_total:
            i, j = site.normal
            loc, scale = phi[i], phi[j]
            at_target = (tangents[i], tangents[j], *tangents[len(phi) :]) if self.weighting.target is not None else ()
            value, inlet = redrawn(total, (self._mixing(site), site.normal, loc, scale, *at_target), loc, scale)
            return Draw(value, (inlet,))
        return self._draw_any(site, phi, tangents)

    def _mixing(self, site: SiteContext) -> Mixing:
        """What the gates need to know."""
        return Mixing(
            self.weighting, site.name, site.error, site.weights, self.norms, self.donor, site.rehearsal, site.state
        )

    @cached_property
    def _is_total(self) -> bool:
        """Whether the parts are a pathwise and a likelihood-ratio one."""
        return [part.passes_path for part in self.parts] == [True, False]

    def _draw_any(self, site: SiteContext, phi: Sequence[Tensor], tangents: Sequence[Tensor | None]) -> Draw:
        """Any family: each part sees its own copy of φ, and `Mix` combines the copies' cotangents."""
        live = [i for i, p in enumerate(phi) if p.requires_grad]
        rows = [_per_sample(site.spec, i, phi[i]) for i in live]
        at_target = (*(tangents[i] for i in live), *tangents[len(phi) :]) if self.weighting.target is not None else ()
        copies = Mix.apply(self._mixing(site), len(self.parts), live, *rows, *at_target)
        dists = []
        for k in range(len(self.parts)):
            mine = list(phi)
            for j, i in enumerate(live):
                mine[i] = copies[k * len(live) + j]
            dists.append(site.build(mine))
        path = next((d for d, part in zip(dists, self.parts) if part.passes_path), None)
        trail = drawn(dists[0] if path is None else path, path=path is not None)
        fixed = tuple(value.detach() for value in trail)
        inlets = [token(row_score(d, fixed)) for d, part in zip(dists, self.parts) if not part.passes_path]
        return Draw(trail[-1], tuple(inlets))


@register_propagator("tp")
def total_propagation(baseline: Any = "loo", **weighting: Any) -> InverseVariance:
    """Total propagation as a propagator: pathwise and likelihood ratio, by inverse variance.

    Args:
        baseline: of the likelihood ratio.
        **weighting: options of the weights, as of the estimator `tp`.
    """
    return InverseVariance((PathwiseRule(), LikelihoodRatioRule(baseline)), Weighting(**weighting))


def _within_groups(part: SitePropagator, groups: int) -> SitePropagator:
    """A part whose leave-one-out baseline keeps groups of rows apart."""
    apart = isinstance(part, LikelihoodRatioRule) and type(part.baseline) is LeaveOneOut
    return LikelihoodRatioRule(LeaveOneOut(groups)) if apart else part


def _per_sample(spec: DistributionSpec, index: int, phi: Tensor) -> Tensor:
    """φ with one row for each sample, so that its cotangent is per sample."""
    if spec.batched(index, phi.shape):
        return phi
    if spec.fields[index].endswith("temperature") and "ExpRelaxedCategorical" in spec.text:
        raise EstimatorError(
            message(
                "inverse-variance weights need a temperature for each sample, and this family takes one for all",
                "Detach it where it is not learned, or use estimator='rp' here.",
                at=f"{spec}",
            )
        )
    event = phi.shape[phi.dim() - spec.event_dims[index] :] if spec.event_dims[index] else ()
    for shape in (spec.batch_shape + tuple(event), spec.sample_shape, spec.batch_shape[:1] + tuple(phi.shape)):
        try:
            expanded = torch.broadcast_to(phi, shape)
        except RuntimeError:  # φ does not expand to this shape; to another it may
            continue
        if expanded.shape[0] == spec.sample_shape[0]:
            return expanded
    raise EstimatorError(
        message(
            f"inverse-variance weights need one {spec.fields[index]!r} for each sample; got shape {tuple(phi.shape)}",
            f"Expand it to the batch, {spec.sample_shape[:1]}, before the distribution is made.",
            at=f"{spec}",
        )
    )
