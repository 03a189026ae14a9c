"""What every layer speaks of: a place in the user's program, the type of a tensor, a plate, a step of a scan."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import torch

from propc.errors import PropcValueError, message, nearest

BATCH = "batch"  # among names of dimensions


class PlateKind(str, Enum):
    """What the elements of a plate are."""

    SAMPLES = "samples"
    CONFIGURATIONS = "configurations"
    ANTITHETIC = "antithetic draws"
    ALTERNATIVES = "alternatives"
    DATA = "independent elements"

    @classmethod
    def _missing_(cls, value: object) -> PlateKind:
        raise PropcValueError(message(f"unknown kind {value!r} of a plate", nearest(str(value), list(cls))))

    __str__ = str.__str__  # in texts, the words


DATA = PlateKind.DATA


@dataclass(frozen=True, slots=True)
class Source:
    """The user's file and line."""

    file: str
    line: int
    function: str = ""

    def __str__(self) -> str:
        return f"{self.file.rsplit('/', 1)[-1]}:{self.line}" if self.file else ""


@dataclass(frozen=True, slots=True)
class TensorType:
    """What is known of a value when the graph is built."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    requires_grad: bool = False

    def __str__(self) -> str:
        return f"{str(self.dtype).removeprefix('torch.')}[{', '.join(map(str, self.shape))}]"


@dataclass(frozen=True, slots=True)
class Plate:
    """A named dimension of replicates: a leading one, introduced by a site, or one of the data, declared by the user.

    Types keep the user's shapes: a value of type [batch, ...] in the plates (b, a) is a tensor
    [size of b, size of a, batch, ...] at run time. The plate that was introduced last stands outermost. A plate of
    the data is a dimension of the program's own shapes, behind the batch: see `Node.dims`.

    Attributes:
        kind: `SAMPLES` are draws of equal weight, `CONFIGURATIONS` all that a site can take, with their
            probabilities as weights, `ANTITHETIC` draws pairs of equal weight, all firsts and then all seconds,
            `ALTERNATIVES` values that a site might have taken instead, of weight 0, `DATA` independent elements
            that the user has named with `propc.plate`. What is written of them may be given, too.
        weighted: whether the site has its weights as a second output; else all weights are 1/size.
        common: whether other sites inside draw from the same random numbers in every element.
        chunk: how many elements segments hold at once; None is all.

    Raises:
        PropcValueError: an unknown kind.
    """

    name: str
    size: int
    kind: PlateKind = PlateKind.SAMPLES
    weighted: bool = False
    common: bool = False
    chunk: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "kind", PlateKind(self.kind))

    def __str__(self) -> str:
        return f"{self.name}[{self.size}]"

    @property
    def contents(self) -> str:
        """How many of what it holds, and their weights."""
        if self.kind == PlateKind.DATA:
            return f"{self.size} {self.kind} of the data"
        kind = self.kind if self.size != 1 else self.kind.removesuffix("s")
        weights = "weights of the site" if self.weighted else f"weights 1/{self.size}"
        return f"{self.size} {kind}, {'weight 0' if self.kind == PlateKind.ALTERNATIVES else weights}"


@dataclass(frozen=True, slots=True)
class Turn:
    """One of the steps of a `propc.scan` that were traced: the `index`-th, which stands for steps `first` to `last`."""

    scan: str
    index: int
    first: int
    last: int
