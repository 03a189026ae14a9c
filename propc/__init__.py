"""propc: a graph compiler for gradients through randomness.

Write the model once as an ordinary PyTorch program, mark its random choices with
`propc.sample`, and choose the gradient estimator with one argument of `propc.compile`.
"""

from typing import TYPE_CHECKING, Any

from propc import estimators, passes, propagators
from propc.api.compile import CompiledFunction, compile
from propc.api.marks import bound, cost, node, opaque, sample
from propc.api.measure import check, compare, signal_to_noise
from propc.api.network import Network
from propc.api.plate import plate
from propc.api.scan import scan
from propc.distributions.families import register_family
from propc.distributions.measures import register_measure
from propc.errors import (
    BiasError,
    EstimatorError,
    GraphError,
    MessageError,
    NonFiniteError,
    OutOfMemoryError,
    PropcError,
    PropcTypeError,
    PropcValueError,
    PropcWarning,
    TraceError,
)
from propc.estimators import (
    Combine,
    Estimator,
    Infer,
    LikelihoodRatio,
    Pathwise,
    TotalPropagation,
    estimator,
    register_estimator,
)
from propc.ir import Kind
from propc.ir.graph import PropagationGraph
from propc.ir.messages import CHILDREN, PARENTS, SELF
from propc.messages import Field, Message
from propc.propagators import NodeView, Propagator, propagator, register_propagator
from propc.runtime.backends import register_backend
from propc.runtime.messaging.propagation import Propagation

if TYPE_CHECKING:
    from propc.diagnostics.comparison.comparison import Comparison
    from propc.diagnostics.explanation import Explanation
    from propc.diagnostics.profile.profile import Profile

__version__ = "0.1.0"

__all__ = [
    "CHILDREN",
    "PARENTS",
    "SELF",
    "BiasError",
    "Combine",
    "Comparison",
    "CompiledFunction",
    "Estimator",
    "EstimatorError",
    "Explanation",
    "Field",
    "GraphError",
    "Infer",
    "Kind",
    "LikelihoodRatio",
    "Message",
    "MessageError",
    "Network",
    "NodeView",
    "NonFiniteError",
    "OutOfMemoryError",
    "Pathwise",
    "Profile",
    "Propagation",
    "PropagationGraph",
    "Propagator",
    "PropcError",
    "PropcTypeError",
    "PropcValueError",
    "PropcWarning",
    "TotalPropagation",
    "TraceError",
    "bound",
    "check",
    "compare",
    "compile",
    "cost",
    "estimator",
    "estimators",
    "node",
    "opaque",
    "passes",
    "plate",
    "propagator",
    "propagators",
    "register_backend",
    "register_estimator",
    "register_family",
    "register_measure",
    "register_propagator",
    "sample",
    "scan",
    "signal_to_noise",
]

# Classes of results, imported when asked for: they bring tables, statistics and pictures, a sixth of the whole.
_RESULTS = {
    "Comparison": "propc.diagnostics.comparison.comparison",
    "Explanation": "propc.diagnostics.explanation",
    "Profile": "propc.diagnostics.profile.profile",
}


def __getattr__(name: str) -> Any:
    if name in _RESULTS:
        from importlib import import_module

        return getattr(import_module(_RESULTS[name]), name)
    raise AttributeError(f"module 'propc' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_RESULTS})
