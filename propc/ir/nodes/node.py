"""A node of the graph: what all kinds have, and what each of them says of itself."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from enum import Enum
from typing import Any, ClassVar, Protocol, TypeVar

import torch

from propc.errors import EstimatorError, PropcError, message
from propc.ir.nodes.look import QUIET, Look, Words, small
from propc.ir.reach import Reach, together
from propc.ir.records import NOWHERE, Ref, Route
from propc.ir.rules import NodeRule
from propc.types import Plate, Source, TensorType, Turn

E = TypeVar("E", bound=PropcError)


class Kind(str, Enum):
    """What a node is; `OTHER` are kinds that are declared elsewhere."""

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
    OTHER = "other"


class Graph(Protocol):
    """What a node may ask of the graph that it stands in."""

    @property
    def nodes(self) -> Mapping[str, Node]:
        """By name, in program order."""

    @property
    def routes(self) -> tuple[Route, ...]:
        """The planned ways of messages."""

    def plate(self, name: str) -> Plate:
        """A plate by its name."""

    def plates_of(self, ref: Ref) -> tuple[str, ...]:
        """The plates that a value carries, the outermost first."""

    def folds(self, box: Any) -> bool:
        """Whether a black box is called once, its plates folded into the batch."""


Plates = Callable[..., tuple[str, ...]]  # of values, and more plates behind them: all together, the outermost first


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """What every node has: a unique name, inputs, output types, the user's line.

    `plates` are those that its values carry, the outermost first; set by reduce-plates. `dims` are the leading
    dimensions of the shape of a site or a cost inside a `propc.plate`: `BATCH`, and plates behind it. `copy_of`
    names the node that it runs again on alternatives of a site, without gradient; set by explore-alternatives.
    `turn` is the step of a `propc.scan` in which it was traced.

    A kind is a frozen dataclass like this one, which adds fields and says what is not as here: a function of its
    inputs, smooth in all of them, that keeps rows of the batch and elements of plates apart and sends no messages. How
    it runs is declared in `propc.runtime.lowering`.

    Attributes:
        kind: of a kind of propc; `called` is what texts say.
        marked: whether the user marks it by name, and may give it a propagator.
        addressed: whether messages may be sent to it by name.
        draws: whether its values are random: it has a bit of its own in `graph.influence`.
        sends: whether routes of messages begin at it.
        hands_on: whether its value is that of its first input.
        foldable: whether the picture folds it, with what stands round it, where steps repeat.
        ends_repeat: whether what the picture folds as one step ends behind it.
        mixes_rows: what it does with all rows of the batch together, so that it can neither stand in a plate nor run
            on alternatives; empty if nothing.
    """

    kind: ClassVar[Kind] = Kind.OTHER
    marked: ClassVar[bool] = False
    addressed: ClassVar[bool] = False
    draws: ClassVar[bool] = False
    sends: ClassVar[bool] = False
    hands_on: ClassVar[bool] = False
    foldable: ClassVar[bool] = True
    ends_repeat: ClassVar[bool] = True
    mixes_rows: ClassVar[str] = ""

    name: str
    outputs: tuple[TensorType, ...]
    inputs: tuple[Ref, ...] = ()
    where: Source = NOWHERE
    plates: tuple[str, ...] = ()
    dims: tuple[str, ...] = ()
    copy_of: str = ""
    turn: Turn | None = None

    # -- its values -----------------------------------------------------------------------------

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
    def number(self) -> str | None:
        """The number that fills it, a constant, as text; None for anything else. It stands where it is read."""
        return None

    @property
    def propagator(self) -> NodeRule | None:
        """What the node does in the forward and the reverse pass: marked nodes can have one."""
        return None

    @property
    def takes_messages(self) -> bool:
        """Whether it handles messages of its own: it has a propagator, and autograd cannot do its work."""
        return False

    # -- what it reads --------------------------------------------------------------------------

    @property
    def reads(self) -> tuple[Ref, ...]:
        """All values that it reads: its inputs, and what stands beside them."""
        return self.inputs

    def reading(self, moved: Callable[[Ref], Ref]) -> Node:
        """The node that reads ``moved(ref)`` in place of each value."""
        return replace(self, inputs=tuple(map(moved, self.inputs)))

    def depends(self, port: int) -> Sequence[Ref]:
        """The inputs on which an output depends."""
        return self.inputs

    def reach(self, given: Sequence[Reach], own: int) -> Sequence[Reach]:
        """What reaches each output, of a node without outputs what reaches its readers.

        Args:
            given: what reaches each input; of a node that draws, one for all together.
            own: the bit of the node, if it draws or is a leaf that wants a gradient; else 0.
        """
        return (together(given),) * max(1, len(self.outputs))

    # -- plates ---------------------------------------------------------------------------------

    @property
    def stands_in(self) -> tuple[str, ...]:
        """All its plates: leading dimensions, then dimensions of its own shape."""
        return (*self.plates, *self.dims[1:])

    def carrying(self, union: Plates) -> Node:
        """The node in the plates of what it reads."""
        return replace(self, plates=union(self.inputs))

    def plates_of(self, port: int, of: Callable[[Ref], tuple[str, ...]]) -> tuple[str, ...]:
        """The plates that an output carries; `of` gives those of other values."""
        return self.plates

    def copied(self, site: str) -> Node:
        """The node as it is on alternatives of a site, where nothing sends messages."""
        return self

    # -- whether it is the like of another ------------------------------------------------------

    def key(self) -> Hashable:
        """Equal for nodes of the kind that do the same, each with what it reads. Types, plates and dims come beside."""
        return tuple(Equal(getattr(self, each.name)) for each in fields(self) if each.name not in _COMMON)

    def drawn_as(self) -> Hashable:
        """Equal for nodes that the picture may fold into one; types come beside."""
        return self.key()

    # -- what it cannot do ----------------------------------------------------------------------

    @property
    def why_once(self) -> str:
        """Why it must not run again in the reverse pass; empty if it may, where its propagator and memory let it."""
        return ""

    def problems(self, graph: Graph) -> Iterator[str]:
        """The invariants of its kind that it breaks."""
        return iter(())

    # -- how it is shown ------------------------------------------------------------------------

    @property
    def called(self) -> str:
        """What texts and messages call it."""
        return self.kind.value

    def error(self, finding: str, fix: str = "", kind: type[E] = EstimatorError) -> E:  # type: ignore[assignment]
        """An error at the node."""
        return kind(message(finding, fix, at=f"{self.called} {self.name!r}", where=self.where))

    @property
    def label(self) -> str:
        """What its step is called in a profile: the kind, of a segment the stage."""
        return self.called

    def text(self, graph: Graph) -> str:
        """What it does, in the text form."""
        return f"{self.called}({listed(graph, self.inputs)})"

    def look(self, graph: Graph) -> Look:
        """How it looks in the picture."""
        return Look((self.headed(), (Words(self.called, QUIET, 9),)), {})

    def role(self, graph: Graph) -> tuple[Words | None, Words]:
        """What it does and by which rule, in the row of a folded run of steps."""
        return None, Words(self.called, QUIET, bold=True)

    def headed(self) -> tuple[Words, ...]:
        """Its name, and the shape of its value."""
        name = Words(self.name, size=12, bold=True)
        return (name, self.shaped()) if self.outputs else (name,)

    def shaped(self) -> Words:
        """The shape of its value, and its plates."""
        plates = f" in {', '.join(self.stands_in)}" if self.stands_in else ""
        return small(f"{list(self.shape)}{plates}")


_COMMON = frozenset(("name", "outputs", "inputs", "where", "plates", "dims", "copy_of", "turn"))


@dataclass(frozen=True)
class Equal:
    """Part of a key that is compared by equality alone, for what may have no hash."""

    value: Any

    def __hash__(self) -> int:
        return 0


def shown(graph: Graph, ref: Ref) -> str:
    """A value in the text form: a number where it is one."""
    source = graph.nodes.get(ref.node)  # None in a broken graph, which must print too
    number = source.number if source is not None else None
    return str(ref) if number is None else number


def listed(graph: Graph, refs: Iterable[Ref]) -> str:
    """Values in the text form, in a row."""
    return ", ".join(shown(graph, ref) for ref in refs)
