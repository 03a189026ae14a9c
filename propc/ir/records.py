"""What stands beside the nodes of a graph (`propc.ir.nodes`): values, tokens, routes and the order, as frozen records.

A `PropagationGraph` (`propc.ir.graph`) holds the nodes in program order. Values travel on edges as `Ref`s (a node and
one of its output ports); only tensors travel. Routes, the planned ways of messages in the reverse pass, are a second
set of edges.
"""

from __future__ import annotations

from dataclasses import dataclass

from propc.ir.rules import CostBaseline
from propc.types import BATCH, Source

NOWHERE = Source("", 0)


@dataclass(frozen=True, slots=True)
class Ref:
    """A value: output port `port` of node `node`."""

    node: str
    port: int = 0

    def __str__(self) -> str:
        return f"%{self.node}" if self.port == 0 else f"%{self.node}.{self.port}"


@dataclass(frozen=True, slots=True)
class Token:
    """Message inlet `index` of a site: zeros in the forward pass, [batch], in plates of the data [batch, n]."""

    site: str
    index: int = 0

    def __str__(self) -> str:
        return self.site if self.index == 0 else f"{self.site}/{self.index}"


@dataclass(frozen=True, slots=True)
class Join:
    """A sum of tokens, used in their place; costs with growing sets of sites share them.

    In `plates` it has an element for each of theirs.
    """

    name: str
    members: tuple[Token, ...]
    plates: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Carried:
    """A sum of tokens that a scan carries from step to step: `first` before its first step, then `again`.

    It is fitted to `plates`, to the dimensions of node `reader`, and to plates of the data `along`.
    """

    first: Token
    again: Token
    reader: str
    plates: tuple[str, ...] = ()
    along: tuple[str, ...] = ()


LOG_MEAN_EXP = "log-mean-exp"
BETWEEN = ("message", "forward", "kept")


@dataclass(frozen=True, slots=True)
class Route:
    """The planned way of a message, by its kind.

    A ``score`` leads from a cost to tokens of sites, under one baseline, or with its weight alone; a ``shaped`` one
    from a resample node to tokens of the sites before it; ``alternatives`` from a compare node to the token of its
    site; a ``message`` from a node with a propagator to nodes with one, in the reverse pass; a ``forward`` likewise in
    the forward pass; a ``kept`` to the node itself, at the next call.

    `fields` names what travels. `over` names the dimensions along which the baseline sees samples: plates,
    and `BATCH`. `through` are the tokens and joins that the runtime uses for the
    `targets` of a score; set by fuse. `along` are plates of the data along which every element of the targets
    receives what the same element of the source sends; along others it receives the sum.
    """

    source: str
    targets: tuple[Token, ...]
    baseline: CostBaseline | None = None
    fields: tuple[str, ...] = ("cost",)
    kind: str = "score"
    through: tuple[Token, ...] = ()
    over: tuple[str, ...] = (BATCH,)
    along: tuple[str, ...] = ()

    @property
    def by_autograd(self) -> bool:
        """Whether it is an edge of autograd; the others lead from one propagator to another."""
        return self.kind not in BETWEEN


@dataclass(frozen=True, slots=True)
class Order:
    """Names in the order of execution: forward steps, then the sites as the reverse pass meets them.

    All reverse steps run in `engine_calls` calls of the autograd engine; 0 where nodes are visited one by one.
    `blocks` are runs of consecutive forward steps, of which only what enters them is kept for the reverse pass, which
    runs them again; set by checkpoint.
    """

    forward: tuple[str, ...] = ()
    reverse: tuple[str, ...] = ()
    engine_calls: int = 1
    blocks: tuple[tuple[str, ...], ...] = ()


@dataclass(frozen=True, slots=True)
class Jump:
    """A selection at which what comes after it jumps.

    Attributes:
        where: the user's line of it.
        operation: its name.
        size: by how much, at the first that was found; 0 where it is known from another call.
        near: sites whose draws reach it along paths that meet no other site.
        far: sites that reach it also through others that pass their paths on.
    """

    where: Source
    operation: str
    size: float
    near: tuple[str, ...] = ()
    far: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.size:.3g} at {self.where}" if self.size else f"at {self.where}"
