"""From a Python function to a torch.fx program with marked sites."""

from propc.frontend.tracer import Tracer, active_tracer
from propc.fx.program import Leaf, Mark, Program

__all__ = ["Leaf", "Mark", "Program", "Tracer", "active_tracer"]
