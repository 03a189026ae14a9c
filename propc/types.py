"""What every layer speaks of: a place in the user's program, the type of a tensor, a plate, a step of a scan."""

from __future__ import annotations

from dataclasses import dataclass

import torch

BATCH = "batch"  # among names of dimensions
DATA = "independent elements"  # the kind of a plate that the user has declared


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
        kind: ``samples`` are draws of equal weight, ``configurations`` all that a site can take, with their
            probabilities as weights, ``antithetic draws`` pairs of equal weight, all firsts and then all seconds,
            ``alternatives`` values that a site might have taken instead, of weight 0, `DATA` independent elements
            that the user has named with `propc.plate`.
        weighted: whether the site has its weights as a second output; else all weights are 1/size.
        common: whether other sites inside draw from the same random numbers in every element.
        chunk: how many elements segments hold at once; None is all.
    """

    name: str
    size: int
    kind: str = "samples"
    weighted: bool = False
    common: bool = False
    chunk: int | None = None

    def __str__(self) -> str:
        return f"{self.name}[{self.size}]"


@dataclass(frozen=True, slots=True)
class Turn:
    """One of the steps of a `propc.scan` that were traced: the `index`-th, which stands for steps `first` to `last`."""

    scan: str
    index: int
    first: int
    last: int
