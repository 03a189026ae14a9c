"""How nodes read tokens, alone and joined."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from propc.ir.graph import PropagationGraph
from propc.ir.named_dims import Names, fitted
from propc.ir.nodes.node import Node
from propc.ir.nodes.site import Site
from propc.ir.records import Token
from propc.runtime.autograd.tokens import join
from propc.runtime.lowering.slots import Places
from propc.runtime.plan.step import Step
from propc.types import BATCH, PlateKind


@dataclass(frozen=True, slots=True)
class Inlet:
    """How a token is read: its place, and what makes it fit the reader, None where it does."""

    read: int
    fitting: Callable[[Tensor], Tensor] | None = None

    def fit(self, token: Tensor) -> Tensor:
        """The token as the reader wants it."""
        return token if self.fitting is None else self.fitting(token)


@dataclass(frozen=True, slots=True)
class TokenSum:
    """Makes one token of several."""

    members: tuple[Inlet, ...]

    @property
    def plain(self) -> bool:
        """Whether what arrives at the join goes to every member as it is."""
        return all(member.fitting is None for member in self.members)

    def __call__(self, *tokens: Tensor) -> tuple[Tensor]:
        return (join([member.fit(token) for member, token in zip(self.members, tokens)]),)


class Inlets:
    """Finds how the nodes of a graph read tokens.

    Args:
        graph: whose nodes they are.
        places: of its tokens.
        plan: takes the step that makes a join in front of a node.
    """

    def __init__(self, graph: PropagationGraph, places: Places, plan: Callable[[Step], None]) -> None:
        self.graph, self.places, self.plan = graph, places, plan
        self.joins = {join.name: join for join in graph.joins}

    def joined(self, tokens: tuple[Token, ...], plates: Names, node: Node, along: Names) -> Inlet:
        """How a node reads the token that stands for `tokens`, in plates; the first reader of a join plans it.

        Args:
            along: plates of the data along which elements stay apart.
        """
        (token,) = tokens
        if token not in self.places.slots:
            members = self.joins[token.site].members
            inlets = tuple(self.joined((member,), plates, node, along) for member in members)
            made = self.places.add(token)
            self.plan(Step(node, TokenSum(inlets), tuple(inlet.read for inlet in inlets), (made,)))
        return self.single(token, plates, node, along)

    def single(self, token: Token, plates: Names, node: Node, along: Names, *over: str) -> Inlet:
        """How a node reads a token, in plates and the dimensions of the node that sends to it.

        Args:
            along: plates of the data along which elements stay apart.
            over: a plate in front of those of both.
        """
        place, site = self.places.slots[token], self.graph.nodes.get(token.site)
        have = (*over, *self.graph.lead(site)) if isinstance(site, Site) else ()
        want = (*over, *plates, *self.graph.own(node))
        apart = tuple(n for n in have if n in want and (n in along or self._is_leading(n)))
        if not isinstance(site, Site) or have == want == apart:
            return Inlet(place)
        sizes = self.graph.sizes(want)
        return Inlet(place, lambda token: fitted(token, have, want, apart, sizes))

    def _is_leading(self, name: str) -> bool:
        """Whether a dimension is the batch or stands in front of it."""
        return name == BATCH or self.graph.plate(name).kind != PlateKind.DATA
