"""Sites: what `propc.sample` marks."""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from propc.ir.nodes.look import Look, Words, colours_of
from propc.ir.nodes.node import Equal, Graph, Kind, Node, Plates, listed, shown
from propc.ir.reach import Reach, together
from propc.ir.records import Jump, Ref
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
    explore-alternatives. `jumps` are those that its draw reaches, as far as they are known. The second output, if any,
    are the weights of the first or the values in the second.
    """

    kind: ClassVar[Kind] = Kind.SITE
    marked: ClassVar[bool] = True
    addressed: ClassVar[bool] = True
    draws: ClassVar[bool] = True

    spec: DistributionSpec
    requested: Any = None
    rule: SiteRule | None = None
    estimator: str = ""
    reason: str = ""
    tangents: tuple[Ref | None, ...] = ()
    plate: str = ""
    alternatives: str = ""
    jumps: tuple[Jump, ...] = ()

    @property
    def propagator(self) -> NodeRule | None:
        return self.rule

    @property
    def takes_messages(self) -> bool:
        return self.rule is not None and not self.rule.local

    @property
    def reads(self) -> tuple[Ref, ...]:
        """Its φ, and tangents along targets."""
        return (*self.inputs, *(ref for ref in self.tangents if ref is not None))

    def reading(self, moved: Callable[[Ref], Ref]) -> Site:
        tangents = tuple(None if ref is None else moved(ref) for ref in self.tangents)
        return replace(self, inputs=tuple(map(moved, self.inputs)), tangents=tangents)

    def reach(self, given: Sequence[Reach], own: int) -> Sequence[Reach]:
        before = together(given)
        drawn = Reach(before.any | own, before.smooth | own, before.rough, own, 0, before.ancestors, own)
        return (drawn, *(drawn if self.alternatives else before for _ in self.outputs[1:]))

    def carrying(self, union: Plates) -> Site:
        """In the plate in which it draws, too."""
        return replace(self, plates=union(self.inputs, self.plate) if self.plate else union(self.inputs))

    def plates_of(self, port: int, of: Callable[[Ref], tuple[str, ...]]) -> tuple[str, ...]:
        return (self.alternatives, *self.plates) if self.alternatives and port else self.plates

    def copied(self, site: str) -> Site:
        """Drawn anew, by a rule that sends and takes nothing."""
        rule = self.rule.anew() if self.rule is not None else None
        assert rule is not None
        return replace(self, rule=rule, estimator=rule.name, reason=f"alternatives of {site}", tangents=())

    def key(self) -> Hashable:
        wanted = tuple(ref is None for ref in self.tangents)
        return self.spec, Equal(self.rule), self.estimator, wanted, self.alternatives

    def drawn_as(self) -> Hashable:
        return self.spec.text, self.estimator

    def problems(self, graph: Graph) -> Iterator[str]:
        if len(self.inputs) != len(self.spec.fields):
            yield f"site {self.name!r} ({self.where}) has {len(self.inputs)} inputs for {len(self.spec.fields)} φ"

    def text(self, graph: Graph) -> str:
        rule = f" by {self.estimator}" if self.rule is not None else ""
        count = len(self.inputs)
        tangents = [ref for ref in self.tangents[:count] if ref is not None]
        along = f" along {listed(graph, tangents)}" if tangents else ""
        beside = self.tangents[count:]
        along += f" with {shown(graph, Ref(beside[-1].node))}" if beside and beside[-1] is not None else ""
        return f"site {self.law(lambda field, ref: f'{field}={shown(graph, ref)}')}{rule}{along}"

    def look(self, graph: Graph) -> Look:
        dark, light = colours_of(self.estimator)
        rule = [Words(self.estimator, dark, bold=True)] if self.estimator else []
        plates = [Words(graph.plate(name).contents, dark, 9) for name in (self.plate, self.alternatives) if name]
        return Look(
            (self.headed(), (Words(self.distribution(graph)),), *((each,) for each in (*rule, *plates))),
            {"shape": "ellipse", "color": dark, "fillcolor": light, "penwidth": "1.6", "margin": "0.03,0.03"},
        )

    def role(self, graph: Graph) -> tuple[Words | None, Words]:
        rule = Words(self.estimator or self.called, colours_of(self.estimator)[0], bold=True)
        return Words(self.distribution(graph)), rule

    def distribution(self, graph: Graph) -> str:
        """Its distribution with the numbers that are constant, such as ``Normal(loc, scale=0.1)``."""
        numbers = {ref: graph.nodes[ref.node].number for ref in self.inputs}
        return self.law(lambda field, ref: field if numbers[ref] is None else f"{field}={numbers[ref]}")

    def law(self, show: Callable[[str, Ref], str]) -> str:
        """Its distribution with ``show(field, value)`` in place of each φ.

        Tensors that its text does not mention follow after a semicolon.
        """
        left = dict(zip(self.spec.fields, self.inputs))

        def value(match: re.Match[str]) -> str:
            name = match.group()
            same = [field for field in left if field.rpartition(".")[2] == name]
            return show(name, left.pop(min(same, key=lambda field: field.count(".")))) if same else name

        text = re.sub(r"\w+(?=[,)])", value, self.spec.text)
        return f"{text}; {', '.join(show(*item) for item in left.items())}" if left else text
