"""From a scheduled graph to a plan. A file for each kind of node says how its step is made; the table is open.

It is given a graph after all passes, and gives steps (`propc.runtime.plan`). It may import what runs them, and what
steps do: `propc.runtime.plates`, `.checks`, `.weighting`, `.autograd`.
"""

from propc.runtime.lowering import (  # noqa: F401, each enters the table
    compare_lowering,
    cost_lowering,
    expand_lowering,
    named_lowering,
    opaque_lowering,
    output_lowering,
    resample_lowering,
    scan_lowering,
    segment_lowering,
    site_lowering,
    source_lowering,
)
from propc.runtime.lowering.lowering import Lowering, lowers

__all__ = ["Lowering", "lowers"]
