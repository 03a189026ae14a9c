"""The graph: its records, what can be asked of it, and what changes it."""

from propc.fx.dependence import Dependence
from propc.ir.pass_request import PassRequest
from propc.ir.records import (
    BETWEEN,
    KIND_OF,
    LOG_MEAN_EXP,
    Carried,
    CompareAlternatives,
    Cost,
    Expand,
    Input,
    Join,
    Kind,
    Named,
    Node,
    Opaque,
    Order,
    Output,
    Parameter,
    Reduce,
    Ref,
    Resample,
    Route,
    Scan,
    Segment,
    Site,
    Stage,
    Token,
)
from propc.types import BATCH, DATA, Plate, Source, TensorType, Turn

# The names of before, for one release.
Compare = CompareAlternatives
Schedule = Order

__all__ = [
    "BATCH",
    "BETWEEN",
    "DATA",
    "KIND_OF",
    "LOG_MEAN_EXP",
    "Carried",
    "Compare",
    "CompareAlternatives",
    "Cost",
    "Dependence",
    "Expand",
    "Input",
    "Join",
    "Kind",
    "Named",
    "Node",
    "Opaque",
    "Order",
    "Output",
    "Parameter",
    "PassRequest",
    "Plate",
    "Reduce",
    "Ref",
    "Resample",
    "Route",
    "Scan",
    "Schedule",
    "Segment",
    "Site",
    "Source",
    "Stage",
    "TensorType",
    "Token",
    "Turn",
]
