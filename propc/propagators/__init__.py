"""What nodes do with messages, one propagator a file: at sites, at named nodes, at costs and in networks."""

from propc.distributions.spec import row_log_prob
from propc.propagators.baselines import Baseline
from propc.propagators.gated import Gated
from propc.propagators.nodes.backprop import Backprop
from propc.propagators.nodes.chain import Chain
from propc.propagators.nodes.clip import Clip
from propc.propagators.nodes.detach import Detach, Stop
from propc.propagators.nodes.gaussian_fit import GaussianShaping
from propc.propagators.nodes.loss import Loss
from propc.propagators.nodes.pause import Pause
from propc.propagators.nodes.scale import Scale
from propc.propagators.nodes.sequence import Sequence
from propc.propagators.nodes.skip import Skip
from propc.propagators.nodes.subtract_baseline import SubtractBaseline
from propc.propagators.nodes.sum import Sum
from propc.propagators.propagator import NodeView, Propagator
from propc.propagators.registry import find, known_propagators, propagator, register_propagator
from propc.propagators.sites.alternatives import Exploring
from propc.propagators.sites.antithetic import Antithetic, Arm, DisArm
from propc.propagators.sites.enumerate import Enumerate
from propc.propagators.sites.gumbel_rao import GumbelRao
from propc.propagators.sites.gumbel_softmax import GumbelSoftmax
from propc.propagators.sites.inverse_variance import InverseVariance, total_propagation
from propc.propagators.sites.likelihood_ratio import LikelihoodRatio
from propc.propagators.sites.local import Local
from propc.propagators.sites.measure_valued import MeasureValued
from propc.propagators.sites.pathwise import Pathwise
from propc.propagators.sites.plain import Plain, plain
from propc.propagators.sites.reinmax import ReinMax
from propc.propagators.sites.site_propagator import Draw, SiteContext, SitePropagator
from propc.propagators.sites.straight_through import StraightThrough
from propc.propagators.sites.straight_through_gumbel import StraightThroughGumbel
from propc.runtime.autograd.tokens import token

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
