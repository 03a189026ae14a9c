"""What nodes do with messages, one propagator a file: at sites, at named nodes, at costs and in networks."""

from propc.baselines import Baseline
from propc.distributions import row_log_prob
from propc.propagators.antithetic import Antithetic, Arm, DisArm
from propc.propagators.backprop import Backprop
from propc.propagators.base import NodeView, Propagator
from propc.propagators.chain import Chain
from propc.propagators.clip import Clip
from propc.propagators.detach import Detach, Stop
from propc.propagators.enumerate import Enumerate
from propc.propagators.exploring import Exploring
from propc.propagators.gated import Gated
from propc.propagators.gaussian import GaussianShaping
from propc.propagators.gumbel_rao import GumbelRao
from propc.propagators.gumbel_softmax import GumbelSoftmax
from propc.propagators.inverse_variance import InverseVariance, total_propagation
from propc.propagators.likelihood_ratio import LikelihoodRatio
from propc.propagators.local import Local
from propc.propagators.loss import Loss
from propc.propagators.measure_valued import MeasureValued
from propc.propagators.pathwise import Pathwise
from propc.propagators.pause import Pause
from propc.propagators.plain import Plain, plain
from propc.propagators.registry import find, known_propagators, propagator, register_propagator
from propc.propagators.reinmax import ReinMax
from propc.propagators.scale import Scale
from propc.propagators.sequence import Sequence
from propc.propagators.site import Draw, SiteContext, SitePropagator
from propc.propagators.skip import Skip
from propc.propagators.straight_through import StraightThrough
from propc.propagators.straight_through_gumbel import StraightThroughGumbel
from propc.propagators.subtract_baseline import SubtractBaseline
from propc.propagators.sum import Sum
from propc.runtime.gates import token

__all__ = [
    "Antithetic",
    "Arm",
    "Backprop",
    "Baseline",
    "Chain",
    "Clip",
    "Detach",
    "DisArm",
    "Draw",
    "Enumerate",
    "Exploring",
    "Gated",
    "GaussianShaping",
    "GumbelRao",
    "GumbelSoftmax",
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
    "ReinMax",
    "Scale",
    "Sequence",
    "SiteContext",
    "SitePropagator",
    "Skip",
    "Stop",
    "StraightThrough",
    "StraightThroughGumbel",
    "SubtractBaseline",
    "Sum",
    "find",
    "known_propagators",
    "plain",
    "propagator",
    "register_propagator",
    "row_log_prob",
    "token",
    "total_propagation",
]
