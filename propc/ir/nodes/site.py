"""Sites: what `propc.sample` marks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from propc.ir.nodes.node import Kind, Node
from propc.ir.records import Ref
from propc.ir.rules import NodeRule, SiteRule

if TYPE_CHECKING:
    from propc.distributions.spec import DistributionSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Site(Node):
    """A marked random choice; inputs are φ, the tensors of its distribution.

    `requested` is what the user wrote in `propc.sample(..., estimator=)`; `rule` and
    `reason` are set by assign-propagators, `tangents` by expand-targets (for each φ one or None, and
    behind them what else the node gives), `plate`, the name of the one in which it draws several times, by
    introduce-plates, `alternatives`, that of the one of values that it might have taken instead, by
    explore-alternatives. The second output, if any, are the weights of the first or the values in the second.
    """

    kind: ClassVar[Kind] = Kind.SITE

    spec: DistributionSpec
    requested: Any = None
    rule: SiteRule | None = None
    estimator: str = ""
    reason: str = ""
    tangents: tuple[Ref | None, ...] = ()
    plate: str = ""
    alternatives: str = ""

    @property
    def propagator(self) -> NodeRule | None:
        return self.rule
