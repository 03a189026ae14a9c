"""The graph: its records, what can be asked of it, and what changes it.

Given nodes, it gives a frozen graph that verifies itself; a change is a new graph. Passes and printers read it, and
nothing here runs it. It may import `propc.fx` and all below, and the printers, as a graph prints itself.
"""

from propc.fx.dependence import Dependence
from propc.ir.nodes.compare_alternatives import CompareAlternatives
from propc.ir.nodes.cost import Cost
from propc.ir.nodes.expand import Expand
from propc.ir.nodes.leaves import Input, Parameter
from propc.ir.nodes.named import Named
from propc.ir.nodes.node import Kind, Node
from propc.ir.nodes.opaque import Opaque
from propc.ir.nodes.output import Output
from propc.ir.nodes.reduce import Reduce
from propc.ir.nodes.resample import Resample
from propc.ir.nodes.scan import Scan
from propc.ir.nodes.segment import Segment, Stage
from propc.ir.nodes.site import Site
from propc.ir.pass_request import PassRequest
from propc.ir.records import BETWEEN, LOG_MEAN_EXP, Carried, Join, Order, Ref, Route, Token
from propc.types import BATCH, DATA, Plate, PlateKind, Source, TensorType, Turn

KIND_OF: dict[type[Node], Kind] = {
    kind: kind.kind
    for kind in (
        Input,
        Parameter,
        Segment,
        Expand,
        Site,
        Resample,
        Reduce,
        Scan,
        CompareAlternatives,
        Named,
        Opaque,
        Cost,
        Output,
    )
}

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
    "PlateKind",
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
