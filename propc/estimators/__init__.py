"""The user's choices: names, options and what each estimator promises.

Given a view of a site, an estimator gives the rule that draws there, the routes it needs and the passes that insert
nodes for it, or refuses the site and says why. They may import propagators and all below.
"""

from propc.estimators.antithetic import Arm, DisArm
from propc.estimators.combine import Combine
from propc.estimators.enumerate import Enumerate
from propc.estimators.estimator import (
    Estimator,
    EstimatorChoice,
    SiteChoice,
    SiteView,
    estimator,
    known_estimators,
    register_estimator,
    resolve,
)
from propc.estimators.gaussian_shaping import GaussianResampling, ShapedLikelihoodRatio, ShapedTotalPropagation
from propc.estimators.infer import Infer
from propc.estimators.likelihood_ratio import LeaveOneOutRatio, LikelihoodRatio
from propc.estimators.local import Local
from propc.estimators.measure_valued import MeasureValued
from propc.estimators.pathwise import Pathwise
from propc.estimators.relaxed import GumbelRao, GumbelSoftmax, ReinMax, StraightThrough, StraightThroughGumbel
from propc.estimators.requirements import require_batch, require_path, require_path_from_draw
from propc.estimators.total_propagation import TotalPropagation
from propc.estimators.vimco import Vimco
from propc.propagators.baselines import Custom, LeaveOneOut, MovingAverage, NoBaseline

# The name of before, for one release.
GaussianShaping = ShapedLikelihoodRatio

__all__ = [
    "Arm",
    "Combine",
    "Custom",
    "DisArm",
    "Enumerate",
    "Estimator",
    "EstimatorChoice",
    "GaussianResampling",
    "GaussianShaping",
    "GumbelRao",
    "GumbelSoftmax",
    "Infer",
    "LeaveOneOut",
    "LeaveOneOutRatio",
    "LikelihoodRatio",
    "Local",
    "MeasureValued",
    "MovingAverage",
    "NoBaseline",
    "Pathwise",
    "ReinMax",
    "ShapedLikelihoodRatio",
    "ShapedTotalPropagation",
    "SiteChoice",
    "SiteView",
    "StraightThrough",
    "StraightThroughGumbel",
    "TotalPropagation",
    "Vimco",
    "estimator",
    "known_estimators",
    "register_estimator",
    "require_batch",
    "require_path",
    "require_path_from_draw",
    "resolve",
]
