"""What nodes do with messages: at sites, at named nodes, at costs and in networks.

Given a node and what comes in, a propagator gives what goes out; it has no state of its own. The table of names
stands here. They may import the weights of `propc.runtime.weighting` and all below.
"""

from propc.distributions.score import row_log_prob
from propc.propagators.baselines import WEIGHT, Baseline
from propc.propagators.gated import Gated
from propc.propagators.nodes.clip import Clip
from propc.propagators.nodes.compose import Chain, Sequence
from propc.propagators.nodes.gaussian_fit import GaussianFit
from propc.propagators.nodes.handlers import Backprop, Detach, Pause, Scale, Skip, Stop, Sum
from propc.propagators.nodes.loss import Loss
from propc.propagators.nodes.subtract_baseline import SubtractBaseline
from propc.propagators.propagator import NodeView, Propagator
from propc.propagators.registry import find, known_propagators, propagator, register_propagator
from propc.propagators.sites.alternatives import Exploring
from propc.propagators.sites.antithetic import AntitheticRule, ArmRule, DisArmRule
from propc.propagators.sites.enumerate import EnumerateRule
from propc.propagators.sites.inverse_variance import InverseVariance, total_propagation
from propc.propagators.sites.likelihood_ratio import LikelihoodRatioRule
from propc.propagators.sites.local import LocalRule
from propc.propagators.sites.measure_valued import MeasureValuedRule
from propc.propagators.sites.pathwise import PathwiseRule
from propc.propagators.sites.plain import Plain, plain
from propc.propagators.sites.relaxed import (
    GumbelRaoRule,
    GumbelSoftmaxRule,
    ReinMaxRule,
    StraightThroughGumbelRule,
    StraightThroughRule,
)
from propc.propagators.sites.site_propagator import Draw, SiteContext, SitePropagator
from propc.runtime.autograd.tokens import token

# The names of before, for one release: an estimator and its rule no longer share theirs.
Antithetic = AntitheticRule
Arm = ArmRule
DisArm = DisArmRule
Enumerate = EnumerateRule
GumbelRao = GumbelRaoRule
GumbelSoftmax = GumbelSoftmaxRule
LikelihoodRatio = LikelihoodRatioRule
Local = LocalRule
MeasureValued = MeasureValuedRule
Pathwise = PathwiseRule
ReinMax = ReinMaxRule
StraightThrough = StraightThroughRule
StraightThroughGumbel = StraightThroughGumbelRule
GaussianShaping = GaussianFit

__all__ = [
    "WEIGHT",
    "Antithetic",
    "AntitheticRule",
    "Arm",
    "ArmRule",
    "Backprop",
    "Baseline",
    "Chain",
    "Clip",
    "Detach",
    "DisArm",
    "DisArmRule",
    "Draw",
    "Enumerate",
    "EnumerateRule",
    "Exploring",
    "Gated",
    "GaussianFit",
    "GaussianShaping",
    "GumbelRao",
    "GumbelRaoRule",
    "GumbelSoftmax",
    "GumbelSoftmaxRule",
    "InverseVariance",
    "LikelihoodRatio",
    "LikelihoodRatioRule",
    "Local",
    "LocalRule",
    "Loss",
    "MeasureValued",
    "MeasureValuedRule",
    "NodeView",
    "Pathwise",
    "PathwiseRule",
    "Pause",
    "Plain",
    "Propagator",
    "ReinMax",
    "ReinMaxRule",
    "Scale",
    "Sequence",
    "SiteContext",
    "SitePropagator",
    "Skip",
    "Stop",
    "StraightThrough",
    "StraightThroughGumbel",
    "StraightThroughGumbelRule",
    "StraightThroughRule",
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
