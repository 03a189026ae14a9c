"""What a site does in the forward and the reverse pass, one rule a file."""

from propc.propagators.base import NodeView, Propagator
from propc.propagators.inverse_variance import InverseVariance
from propc.propagators.likelihood_ratio import LikelihoodRatio
from propc.propagators.pathwise import Pathwise
from propc.propagators.plain import Plain
from propc.propagators.site import Baseline, Draw, SiteContext, SitePropagator

__all__ = [
    "Baseline",
    "Draw",
    "InverseVariance",
    "LikelihoodRatio",
    "NodeView",
    "Pathwise",
    "Plain",
    "Propagator",
    "SiteContext",
    "SitePropagator",
]
