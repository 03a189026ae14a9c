"""The user's choices: names, options and what each estimator promises. One a file."""

from propc.baselines import Custom, LeaveOneOut, MovingAverage, NoBaseline
from propc.estimators.base import (
    Estimator,
    SiteView,
    estimator,
    known_estimators,
    register_estimator,
    resolve,
)
from propc.estimators.combine import Combine
from propc.estimators.enumerate import Enumerate
from propc.estimators.gaussian_shaping import GaussianResampling, GaussianShaping, ShapedTotalPropagation
from propc.estimators.infer import Infer
from propc.estimators.likelihood_ratio import LeaveOneOutRatio, LikelihoodRatio, require_batch
from propc.estimators.local import Local
from propc.estimators.measure_valued import MeasureValued
from propc.estimators.pathwise import Pathwise, require_path
from propc.estimators.total_propagation import TotalPropagation

__all__ = [
    "Combine",
    "Custom",
    "Enumerate",
    "Estimator",
    "GaussianResampling",
    "GaussianShaping",
    "Infer",
    "LeaveOneOut",
    "LeaveOneOutRatio",
    "LikelihoodRatio",
    "Local",
    "MeasureValued",
    "MovingAverage",
    "NoBaseline",
    "Pathwise",
    "ShapedTotalPropagation",
    "SiteView",
    "TotalPropagation",
    "estimator",
    "known_estimators",
    "register_estimator",
    "require_batch",
    "require_path",
    "resolve",
]
