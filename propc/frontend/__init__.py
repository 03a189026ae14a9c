"""From a Python function to a torch.fx program with marked sites.

Given a function and its arguments, it runs the function once on tensors without values, records what it does, and
gives the program cut at its marks, with what it reached outside. It may import `propc.ir` and all below.
"""

from propc.frontend.tracer import Tracer, active_tracer
from propc.fx.program import Leaf, Mark, Program

__all__ = ["Leaf", "Mark", "Program", "Tracer", "active_tracer"]
