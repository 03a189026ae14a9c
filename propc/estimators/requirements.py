"""What estimators for discrete sites require."""

from __future__ import annotations

import torch

from propc.distributions.families import family
from propc.distributions.perturbed_logits import Categories, Family
from propc.distributions.support import of_ones
from propc.estimators.estimator import SiteView


def require_path_from_draw(name: str, site: SiteView) -> Family:
    """Check that a site is discrete, and that a cotangent on its draw comes from every cost; gives its family.

    Raises:
        EstimatorError: another distribution, an integer class, or a cost that no differentiable path reaches.
    """
    found = family(site.spec)
    if found is None:
        raise site.error(
            f"estimator {name!r} needs a Bernoulli or OneHotCategorical distribution; got {site.spec}",
            "Try estimator='rp'."
            if site.spec.has_rsample
            else "If it is discrete, propc.register_family makes it known. Try estimator='lr'.",
        )
    if isinstance(found, Categories) and found.indexed:
        raise site.error(
            f"estimator {name!r} needs a gradient on the draw; {site.spec} draws an integer, which lets none through",
            "Draw from OneHotCategorical, and write draw @ table in place of table[draw]; or try estimator='lr'.",
        )
    if not _differentiable(found, site):
        raise site.error(
            f"estimator {name!r} needs a gradient on the draw; the value= of {site.spec} lets none through",
            "Register the family with a value= that is differentiable in b, or try estimator='lr'.",
        )
    if site.blocked:
        costs = ", ".join(map(repr, site.blocked))
        raise site.error(
            f"estimator {name!r} needs a differentiable path from the draw to every cost; none leads to {costs}",
            "Try estimator='lr', or remove the detach, comparison, rounding or black box on the way.",
        )
    return found


def _differentiable(found: Family, site: SiteView) -> bool:
    """Whether a gradient leads from a draw, as the family makes it, back to the outcome."""
    dist = of_ones(site.spec, site.phi)
    with torch.enable_grad():
        b = torch.zeros_like(found.logits(dist)).requires_grad_()
        return found.value(dist, b).requires_grad
