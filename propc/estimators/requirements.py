"""What estimators for discrete sites require."""

from __future__ import annotations

from propc.distributions.perturbed_logits import Categories, Family, family
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
            f"Try estimator={'rp' if site.spec.has_rsample else 'lr'!r}.",
        )
    if isinstance(found, Categories) and found.indexed:
        raise site.error(
            f"estimator {name!r} needs a gradient on the draw; {site.spec} draws an integer, which lets none through",
            "Draw from OneHotCategorical, and write draw @ table in place of table[draw]; or try estimator='lr'.",
        )
    if site.blocked:
        costs = ", ".join(map(repr, site.blocked))
        raise site.error(
            f"estimator {name!r} needs a differentiable path from the draw to every cost; none leads to {costs}",
            "Try estimator='lr', or remove the detach, comparison, rounding or black box on the way.",
        )
    return found
