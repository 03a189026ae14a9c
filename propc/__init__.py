"""propc: a graph compiler for gradients through randomness.

Write the model once as an ordinary PyTorch program, mark its random choices with
`propc.sample`, and choose the gradient estimator with one argument of `propc.compile`.
"""

from propc import estimators, passes, propagators
from propc.api import CompiledFunction, compile
from propc.comparing.compare import compare
from propc.comparing.comparison import Comparison
from propc.comparing.signal_to_noise import signal_to_noise
from propc.errors import (
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
from propc.explain import Explanation
from propc.graph import PropagationGraph
from propc.ir import Kind
from propc.messages import CHILDREN, PARENTS, SELF, Field, Message
from propc.network import Network
from propc.plates import plate
from propc.profiling.profile import Profile
from propc.propagation import Propagation
from propc.propagators import NodeView, Propagator, propagator, register_propagator
from propc.scanning import scan
from propc.sites import bound, cost, node, opaque, sample

__version__ = "0.1.0"

__all__ = [
    "CHILDREN",
    "PARENTS",
    "SELF",
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
    "register_estimator",
    "register_propagator",
    "sample",
    "scan",
    "signal_to_noise",
]
