"""From a Python function to a torch.fx program with marked sites."""

from propc.tracing.program import Leaf, Mark, Program
from propc.tracing.tracer import Tracer, active_tracer

__all__ = ["Leaf", "Mark", "Program", "Tracer", "active_tracer"]
