"""Where a likelihood ratio sees only part of the derivative: distributions whose support moves with what they learn."""

from __future__ import annotations

from collections.abc import Mapping

from propc.distributions.support import moving_ends
from propc.errors import EstimatorError, message
from propc.ir.graph import PropagationGraph
from propc.ir.nodes.site import Site
from propc.ir.rules import SiteRule
from propc.types import TensorType


def refuse_moving_support(graph: PropagationGraph) -> None:
    """Refuse `log_prob` as a source of gradients where the ends of the support depend on φ that take one.

    What a moving end adds to the expectation is not in the score: that of Uniform(0, θ) has a mean gradient of zero.

    Raises:
        EstimatorError: names the site and the parameters.
    """
    rules = {site.name: site.rule for site in graph.sites}
    for site in graph.sites:
        scores = site.rule is not None and site.rule.scores
        moving = moving_ends(site.spec, _phi(graph, site)) if scores else ()
        live = [site.spec.fields[i] for i in sorted(moving) if _live(graph, site, i, rules)]
        if live:
            raise _moving(site, live)


def _phi(graph: PropagationGraph, site: Site) -> list[TensorType]:
    return [graph[ref.node].outputs[ref.port] for ref in site.inputs]


def _live(graph: PropagationGraph, site: Site, index: int, rules: Mapping[str, SiteRule | None]) -> bool:
    """Whether a gradient at φ[index] reaches a parameter, or a site that passes it on."""
    reach = graph.influence.values[site.inputs[index]]
    passing = (getattr(rules.get(name), "passes_path", True) for name in graph.influence.named(reach.parents))
    return bool(reach.leaves) or any(passing)


def _moving(site: Site, names: list[str]) -> EstimatorError:
    other = "Use 'rp' here, or draw" if site.spec.has_rsample else "Draw"
    return EstimatorError(
        message(
            f"the support of {site.spec} moves with {' and '.join(map(repr, names))}, which the likelihood ratio of "
            f"{site.estimator!r} does not see: its gradient would be wrong",
            f"{other} from a fixed support, and shift and scale the draw: low + (high - low) * "
            "propc.sample(Uniform(zeros, ones)).",
            at=f"site {site.name!r}",
            where=site.where,
        )
    )
