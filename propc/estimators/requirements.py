"""What estimators require of a site."""

from __future__ import annotations

import torch

from propc.distributions.families import family
from propc.distributions.perturbed_logits import Categories, Family
from propc.distributions.support import of_ones
from propc.estimators.estimator import SiteView
from propc.propagators.baselines import Baseline, LeaveOneOut


def require_batch(name: str, chosen: Baseline, site: SiteView, samples: int = 1) -> None:
    """Check that the costs and the site hold independent samples along their leading dimension, or in a plate.

    Raises:
        EstimatorError: a scalar cost, a site without the batch dimension, or a single
            sample under a leave-one-out baseline.
    """
    if samples > 1:
        return
    if site.batch is None:
        raise site.error(
            f"estimator {name!r} needs one cost for each sample; a cost is a scalar",
            "Return the cost with shape [batch] and take its mean outside the compiled function, or draw several "
            "samples with an estimator of sites, such as propc.estimator('lr', samples=10).",
        )
    if site.spec.rows() != site.batch:
        raise site.error(
            f"estimator {name!r} needs the batch as the leading dimension of the distribution; the costs have "
            f"{site.batch} samples and {site.spec} has batch shape {list(site.spec.batch_shape)}",
            f"Expand its parameters to [{site.batch}, ...], so that every sample has a draw of its own.",
        )
    if not site.batch:
        raise site.error(
            f"estimator {name!r} compares the samples of a batch, and this one is empty",
            "Leave the call out where there is no data.",
        )
    if site.batch < 2 and isinstance(chosen, LeaveOneOut):
        raise site.error(
            f"estimator {name!r} has a leave-one-out baseline and a batch of 1",
            "Use a batch of two or more, samples=2 or more, or baseline=None or 'moving_average'.",
        )


def require_path(name: str, site: SiteView) -> None:
    """Check that pathwise derivatives exist at the site and reach every cost.

    Raises:
        EstimatorError: the distribution has no `rsample`, or a cost cannot be reached.
    """
    if not site.spec.has_rsample:
        says = getattr(site.spec.innermost.type, "has_rsample", False) is True
        lacks = "the draw of its rsample does not lead back to its parameters" if says else "has no rsample"
        raise site.error(
            f"estimator {name!r} needs a reparameterizable distribution; {'of ' * says}{site.spec} {lacks}",
            "Try estimator='lr'.",
        )
    _require_no_block(name, site, "a differentiable path")


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
    _require_no_block(name, site, "a differentiable path from the draw")
    return found


def _differentiable(found: Family, site: SiteView) -> bool:
    """Whether a gradient leads from a draw, as the family makes it, back to the outcome."""
    dist = of_ones(site.spec, site.phi)
    with torch.enable_grad():
        b = torch.zeros_like(found.logits(dist)).requires_grad_()
        return found.value(dist, b).requires_grad


def _require_no_block(name: str, site: SiteView, path: str) -> None:
    """Check that a differentiable path leads to every cost."""
    if site.blocked:
        costs = ", ".join(map(repr, site.blocked))
        raise site.error(
            f"estimator {name!r} needs {path} to every cost; none leads to {costs}",
            "Try estimator='lr', or remove the detach, comparison, rounding or black box on the way.",
        )
