"""What nodes do with messages, one propagator a file: at sites, at named nodes, at costs and in networks."""

from propc.baselines import Baseline
from propc.distributions import row_log_prob
from propc.propagators.backprop import Backprop
from propc.propagators.base import NodeView, Propagator
from propc.propagators.chain import Chain
from propc.propagators.clip import Clip
from propc.propagators.detach import Detach, Stop
from propc.propagators.enumerate import Enumerate
from propc.propagators.exploring import Exploring
from propc.propagators.gated import Gated
from propc.propagators.gaussian import GaussianShaping
from propc.propagators.inverse_variance import InverseVariance, total_propagation
from propc.propagators.likelihood_ratio import LikelihoodRatio
from propc.propagators.local import Local
from propc.propagators.loss import Loss
from propc.propagators.measure_valued import MeasureValued
from propc.propagators.pathwise import Pathwise
from propc.propagators.pause import Pause
from propc.propagators.plain import Plain
from propc.propagators.registry import find, known_propagators, propagator, register_propagator
from propc.propagators.scale import Scale
from propc.propagators.sequence import Sequence
from propc.propagators.site import Draw, SiteContext, SitePropagator
from propc.propagators.skip import Skip
from propc.propagators.subtract_baseline import SubtractBaseline
from propc.propagators.sum import Sum
from propc.runtime.gates import token

__all__ = [
    "Backprop",
    "Baseline",
    "Chain",
    "Clip",
    "Detach",
    "Draw",
    "Enumerate",
    "Exploring",
    "Gated",
    "GaussianShaping",
    "InverseVariance",
    "LikelihoodRatio",
    "Local",
    "Loss",
    "MeasureValued",
    "NodeView",
    "Pathwise",
    "Pause",
    "Plain",
    "Propagator",
    "Scale",
    "Sequence",
    "SiteContext",
    "SitePropagator",
    "Skip",
    "Stop",
    "SubtractBaseline",
    "Sum",
    "find",
    "known_propagators",
    "propagator",
    "register_propagator",
    "row_log_prob",
    "token",
    "total_propagation",
]
