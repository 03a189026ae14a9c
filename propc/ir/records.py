"""The whole propagation IR on one screen: frozen node records, values and routes.

A `PropagationGraph` (`propc.ir.graph`) holds these records in program order. Values
travel on edges as `Ref`s (a node and one of its output ports); only tensors travel.
Routes, the planned ways of messages in the reverse pass, are a second set of edges.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any

import torch

from propc.fx.dependence import Dependence
from propc.types import BATCH, Source, TensorType, Turn

if TYPE_CHECKING:
    import torch.fx

    from propc.distributions.spec import DistributionSpec
    from propc.propagators.baselines import Baseline
    from propc.propagators.propagator import Propagator
    from propc.propagators.sites.site_propagator import SitePropagator


NOWHERE = Source("", 0)


class Kind(str, Enum):
    """What a node is."""

    INPUT = "input"
    PARAMETER = "parameter"
    SEGMENT = "segment"
    EXPAND = "expand"
    SITE = "site"
    RESAMPLE = "resample"
    REDUCE = "reduce"
    SCAN = "scan"
    COMPARE = "compare"
    NODE = "node"
    OPAQUE = "opaque"
    COST = "cost"
    OUTPUT = "output"


@dataclass(frozen=True, slots=True)
class Ref:
    """A value: output port `port` of node `node`."""

    node: str
    port: int = 0

    def __str__(self) -> str:
        return f"%{self.node}" if self.port == 0 else f"%{self.node}.{self.port}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """What every node has: a unique name, inputs, output types, the user's line.

    `plates` are those that its values carry, the outermost first; set by reduce-plates. `dims` are the leading
    dimensions of the shape of a site or a cost inside a `propc.plate`: `BATCH`, and plates behind it. `copy_of`
    names the node that it runs again on alternatives of a site, without gradient; set by explore-alternatives.
    `turn` is the step of a `propc.scan` in which it was traced.
    """

    name: str
    outputs: tuple[TensorType, ...]
    inputs: tuple[Ref, ...] = ()
    where: Source = NOWHERE
    plates: tuple[str, ...] = ()
    dims: tuple[str, ...] = ()
    copy_of: str = ""
    turn: Turn | None = None

    @property
    def kind(self) -> Kind:
        return KIND_OF[type(self)]

    @property
    def made(self) -> tuple[Ref, ...]:
        """Its values, one for each output."""
        return tuple(Ref(self.name, port) for port in range(len(self.outputs)))

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the first output; ``()`` where there is none."""
        return self.outputs[0].shape if self.outputs else ()

    @property
    def dtype(self) -> torch.dtype | None:
        """Dtype of the first output."""
        return self.outputs[0].dtype if self.outputs else None

    @property
    def propagator(self) -> Propagator | None:
        """What the node does in the forward and the reverse pass: sites, named nodes and costs can have one."""
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Input(Node):
    """A tensor argument. `path` is its place in the call, such as ``beta`` or ``batch['x']``."""

    path: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameter(Node):
    """A tensor that the program holds: parameter, buffer or closed-over tensor, by `path`.

    A `constant` is the same at every call; its path is its value where all elements are equal.
    """

    path: str
    constant: bool = False


@dataclass(frozen=True, slots=True)
class Stage:
    """A distinct piece of code, compiled once and used by every equal segment."""

    name: str
    module: torch.fx.GraphModule


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment(Node):
    """A deterministic piece of the program between sites.

    `body` are its torch.fx nodes in program order, `arguments` and `results` the
    torch.fx nodes that its inputs and outputs stand for; `stage` is set by
    deduplicate-stages. `spread` are the plates of each output; empty where no input is in a plate. `rows` are how many
    of the batch it takes at once, set by chunk-batch; 0 is all.
    """

    body: tuple[torch.fx.Node, ...] = field(repr=False)
    arguments: tuple[torch.fx.Node, ...] = field(repr=False)
    results: tuple[torch.fx.Node, ...] = field(repr=False)
    dependence: tuple[Dependence, ...] = field(repr=False)
    stage: Stage | None = None
    spread: tuple[tuple[str, ...], ...] = ()
    rows: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Expand(Node):
    """What turns cotangents on a site's φ into variances at a weighting target; inserted by expand-targets.

    Where `directions` is not 0, the first outputs, one for each φ that depends on the target, are tangents of φ,
    ``[P, *φ.shape]``, along P directions: when `exact` they are the P coordinates of the target, else random signs.
    A cotangent on φ times tangents is the per-sample gradient along these directions.

    With `norms`, the outputs behind them are what a reverse traversal to the target reads, from which the site's rule
    takes the exact variance (`propc.runtime.weighting.per_sample_norms`) of the target, or of all of it that has no
    tangents.
    """

    target: str
    directions: int
    exact: bool
    norms: bool = False
    code: torch.fx.GraphModule = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Site(Node):
    """A marked random choice; inputs are φ, the tensors of its distribution.

    `requested` is what the user wrote in `propc.sample(..., estimator=)`; `rule` and
    `reason` are set by assign-propagators, `tangents` by expand-targets (for each φ one or None, and
    behind them what else the node gives), `plate`, the name of the one in which it draws several times, by
    introduce-plates, `alternatives`, that of the one of values that it might have taken instead, by
    explore-alternatives. The second output, if any, are the weights of the first or the values in the second.
    """

    spec: DistributionSpec
    requested: Any = None
    rule: SitePropagator | None = None
    estimator: str = ""
    reason: str = ""
    tangents: tuple[Ref | None, ...] = ()
    plate: str = ""
    alternatives: str = ""

    @property
    def propagator(self) -> Propagator | None:
        return self.rule


@dataclass(frozen=True, slots=True, kw_only=True)
class Resample(Node):
    """Draws anew from the Gaussian fitted to the rows of its inputs; inserted by gaussian-shaping.

    The inputs are fitted jointly; the outputs have their types. To what is before it the node is a
    cost, which sends shaped messages; to what is behind it, a site.

    Attributes:
        sites: those that may take its messages; empty for all before it.
        shrinkage: share of the covariance that is replaced by its mean variance times the identity.
        jitter: what is added to the variances.
    """

    sites: tuple[str, ...] = ()
    shrinkage: float = 0.0
    jitter: float = 1e-6

    @property
    def width(self) -> int:
        """Dimensions of the Gaussian: elements of a row of all inputs."""
        return sum(math.prod(kind.shape[1:]) for kind in self.outputs)


@dataclass(frozen=True, slots=True, kw_only=True)
class Named(Node):
    """A value that the user named with `propc.node`, or a node of a `propc.Network`, which has no value.

    `rule` is what was given as ``propagator=``; None hands cotangents on as autograd does. `forced` is the
    target that a pass forces on its messages in the reverse pass.
    """

    rule: Propagator | None = None
    forced: Any = None

    @property
    def propagator(self) -> Propagator | None:
        return self.rule


@dataclass(frozen=True, slots=True, kw_only=True)
class Opaque(Node):
    """A black box, `propc.opaque`: runs as it is, no gradient goes through it.

    `how` is what the user said of it in plates: ``batch``, one call with the plates folded into the batch,
    ``loop``, a call for each element, or nothing.
    """

    call: torch.fx.Node = field(repr=False)
    arguments: tuple[torch.fx.Node, ...] = field(repr=False)
    how: str = ""


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost(Node):
    """A per-sample loss term, [batch], in plates of the data [batch, n]; its gradient sends messages.

    `path` says where it stands: a name, or the place in the returned value. `rule` is what was given as
    ``propagator=``; None sends its weight on as cotangent, and weight × (value − baseline) along its routes.
    `how` says what becomes of its values in plates: their ``mean``, or, of log weights, `LOG_MEAN_EXP`.
    """

    path: str
    rule: Propagator | None = None
    forced: Any = None
    how: str = "mean"

    @property
    def propagator(self) -> Propagator | None:
        return self.rule


@dataclass(frozen=True, slots=True, kw_only=True)
class Output(Node):
    """The returned values in flattened order; `guarded` marks those that are no costs."""

    guarded: tuple[bool, ...] = ()
    paths: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Reduce(Node):
    """The weighted mean of a value over its outermost plate; inserted by reduce-plates.

    Inputs are the value and, of plates that have any, their weights. Of costs it is a cost too: routes to the
    sites that are not inside `over` begin here. `how` is ``mean``, or ``first`` for values without a mean, such
    as classes, or `LOG_MEAN_EXP`, over all plates at once; then routes to all sites begin here.
    """

    over: tuple[str, ...]
    how: str = "mean"
    of_cost: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class CompareAlternatives(Node):
    """A cost beside what it would be on alternatives of a site; inserted by explore-alternatives.

    Inputs are the cost and that of the alternatives, in the plate `over`; the value is the cost's. A route leads
    from here to the site: weight × (cost of the alternative − cost).
    """

    over: str


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Scan(Node):
    """Steps of a `propc.scan` that are all alike: the nodes of one, run `length` times; inserted by roll-scans.

    Attributes:
        inputs: the carried values before the first step; the outputs are what they are in each.
        body: the nodes of the step, which stand right behind this one.
        again: what becomes of the carried values in the step, as they are in the next.
        tokens: carried sums of tokens; `Token(name, i)` is what the i-th is in each step.
        blocks: of steps, of which all but the last run again in the reverse pass in place of being kept.
    """

    body: tuple[str, ...]
    again: tuple[Ref, ...]
    length: int
    tokens: tuple[Carried, ...] = ()
    blocks: int = 1


LOG_MEAN_EXP = "log-mean-exp"
BETWEEN = ("message", "forward", "kept")


@dataclass(frozen=True, slots=True)
class Route:
    """The planned way of a message, by its kind.

    A ``score`` leads from a cost to tokens of sites, under one baseline; a ``shaped`` one from a
    resample node to tokens of the sites before it; ``alternatives`` from a compare node to the token of its site; a
    ``message`` from a node with a propagator to nodes with one, in the reverse pass; a ``forward`` likewise in the
    forward pass; a ``kept`` to the node itself, at the next call.

    `fields` names what travels. `over` names the dimensions along which the baseline sees samples: plates,
    and `BATCH`. `through` are the tokens and joins that the runtime uses for the
    `targets` of a score; set by fuse. `along` are plates of the data along which every element of the targets
    receives what the same element of the source sends; along others it receives the sum.
    """

    source: str
    targets: tuple[Token, ...]
    baseline: Baseline | None = None
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


KIND_OF: dict[type, Kind] = {
    Input: Kind.INPUT,
    Parameter: Kind.PARAMETER,
    Segment: Kind.SEGMENT,
    Expand: Kind.EXPAND,
    Site: Kind.SITE,
    Resample: Kind.RESAMPLE,
    Reduce: Kind.REDUCE,
    Scan: Kind.SCAN,
    CompareAlternatives: Kind.COMPARE,
    Named: Kind.NODE,
    Opaque: Kind.OPAQUE,
    Cost: Kind.COST,
    Output: Kind.OUTPUT,
}
